"""A tokenizer's file gives back the tokenizer, or says why it cannot."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from mar.config import choice
from mar.latents.posterior import LatentShape, Posterior
from mar.model.mar import MAR
from mar.model.saved import save_mar
from mar.tokenizers.detok import DeTokConfig, StackSize
from mar.tokenizers.diffusers import DiffusersConfig
from mar.tokenizers.interface import TokenizerSection
from mar.tokenizers.kl import AutoencoderConfig
from mar.tokenizers.ldm import LDMConfig
from mar.tokenizers.pixels import Pixels, PixelsConfig
from mar.tokenizers.registry import (
    TOKENIZERS,
    Kind,
    TokenizerConfig,
    build_tokenizer,
    latent_shape,
    load_tokenizer,
    save_tokenizer,
)
from mar.tokenizers.vq import VQConfig


CONFIG = AutoencoderConfig(
    kind="kl",
    latent_channels=3,
    base_channels=8,
    channel_multipliers=[1, 2],
    num_res_blocks=1,
    encoder_attention=True,
    kl_weight=1e-6,
)
QUANTISED = VQConfig(
    kind="vq",
    latent_channels=3,
    base_channels=8,
    channel_multipliers=[1, 2],
    num_res_blocks=1,
    encoder_attention=True,
    codebook_size=5,
    commitment_weight=0.25,
    revive_dead=True,
)
DENOISING = DeTokConfig(
    kind="detok",
    latent_channels=3,
    patch_size=2,
    grid=4,
    encoder=StackSize(width=16, blocks=1, heads=2),
    decoder=StackSize(width=24, blocks=1, heads=2),
    noise_std=3.0,
    drop_ratio_max=0.7,
    kl_weight=1e-3,
    decoder_from_step=None,
)
FOREIGN = DiffusersConfig(
    kind="diffusers",
    latent_channels=3,
    block_out_channels=[8, 16],
    layers_per_block=1,
    norm_num_groups=4,
    use_quant_conv=False,
    use_post_quant_conv=True,
    mid_block_add_attention=False,
    kl_weight=1e-6,
)
LDM = LDMConfig(
    kind="ldm",
    latent_channels=3,
    base_channels=8,
    channel_multipliers=[1, 2],
    num_res_blocks=1,
    attention_strides=[2],
    kl_weight=1e-6,
)
ALL = [CONFIG, LDM, FOREIGN, QUANTISED, DENOISING, PixelsConfig(kind="pixels")]


def test_every_kind_in_the_table_is_tried_here_and_answers_what_is_asked() -> None:
    assert [config.kind for config in ALL] == list(TOKENIZERS)
    for config in ALL:
        kind = TOKENIZERS[config.kind]
        assert type(config) is kind.config
        assert isinstance(config, TokenizerSection)
        model = build_tokenizer(config)
        assert type(model) is kind.tokenizer
        assert model.codebook_size == config.codebook_size
        assert config.has_weights == any(True for _ in model.parameters())
        assert not config.is_released
        assert config.phases.keys() <= type(config).model_fields.keys()
    released = [name for name, kind in TOKENIZERS.items() if kind.config.has_released_layout]
    assert released == ["kl"]


class Toy(PixelsConfig):
    """Section `tokenizer` for a kind that is not there."""

    kind: Literal["toy"]  # pyright: ignore[reportIncompatibleVariableOverride]


def test_a_section_in_the_table_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TOKENIZERS, "toy", Kind(Pixels, Toy))
    sections = {name: kind.config for name, kind in TOKENIZERS.items()}
    adapter = TypeAdapter[TokenizerSection](Annotated[TokenizerSection, choice(sections)])
    toy = adapter.validate_python({"kind": "toy"})
    assert toy == Toy(kind="toy")
    assert type(build_tokenizer(toy)) is Pixels
    assert latent_shape(toy, 8) == LatentShape(3, 8, 8)
    with pytest.raises(ValidationError, match="'pixels', 'toy'"):
        adapter.validate_python({"kind": "unknown"})


def test_attention_where_there_is_no_level_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"attention_strides: 4 is not the stride of a level"):
        LDMConfig.model_validate({**LDM.model_dump(), "attention_strides": [4]})


@pytest.mark.parametrize("config", ALL, ids=lambda config: config.kind)
def test_a_saved_tokenizer_comes_back(
    config: TokenizerConfig, tmp_path: Path, rng: torch.Generator
) -> None:
    path = tmp_path / "tokenizer.safetensors"
    model = build_tokenizer(config)
    model.initialize(rng)
    save_tokenizer(path, model)
    loaded = load_tokenizer(path)
    assert loaded.config == config
    assert type(loaded) is type(model)
    first = model.state_dict()
    assert first.keys() == loaded.state_dict().keys()
    assert all(torch.equal(first[name], value) for name, value in loaded.state_dict().items())
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    images = torch.randn(2, 3, 8, 8, generator=rng)
    moments = model.encode(images)
    assert torch.equal(loaded.encode(images), moments)
    assert torch.equal(loaded.decode(moments[:, :3]), model.decode(moments[:, :3]))


def test_a_generator_is_not_taken_for_a_tokenizer(tiny_model: MAR, tmp_path: Path) -> None:
    path = tmp_path / "generator.safetensors"
    save_mar(path, tiny_model, "a" * 64)
    with pytest.raises(ValueError, match=r"generator\.safetensors does not hold a tokenizer"):
        load_tokenizer(path)


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.safetensors"
    save_tokenizer(path, build_tokenizer(CONFIG))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"tokenizer\.safetensors is damaged"):
        load_tokenizer(path)


@pytest.mark.parametrize("config", ALL, ids=lambda config: config.kind)
def test_the_shape_of_latents_is_that_of_the_encoder(config: TokenizerConfig) -> None:
    model = build_tokenizer(config)
    shape = latent_shape(model.config, 8)
    assert shape == latent_shape(config, 8)
    assert shape == LatentShape(model.latent_channels, 8 // model.stride, 8 // model.stride)
    posterior = Posterior.of(model.encode(torch.zeros(1, 3, 8, 8)), shape.channels)
    assert posterior.mean.shape == (1, shape.channels, shape.height, shape.width)
    assert (posterior.log_variance is None) == (config.kind in ("vq", "pixels"))


@pytest.mark.parametrize("config", ALL, ids=lambda config: config.kind)
def test_codes_are_given_where_there_is_a_codebook(
    config: TokenizerConfig, rng: torch.Generator
) -> None:
    model = build_tokenizer(config)
    model.initialize(rng)
    indices = model.quantise(torch.randn(2, 3, 4, 4, generator=rng))
    assert (indices is None) == (model.codebook_size is None) == (config.kind != "vq")
    assert indices is None or indices.shape == (2, 4, 4)


def test_images_that_do_not_divide_into_latents_are_refused() -> None:
    expected = r"data\.image_size: 9 pixels do not divide into latents of 2 pixels"
    with pytest.raises(ValueError, match=expected):
        latent_shape(CONFIG, 9)


def test_images_that_make_more_latents_than_there_are_positions_are_refused() -> None:
    expected = r"data\.image_size: 16 pixels are not the 4 latents of 2 pixels of tokenizer\.grid"
    with pytest.raises(ValueError, match=expected):
        latent_shape(DENOISING, 16)
