"""A tokenizer's file gives back the tokenizer, or says why it cannot."""

from pathlib import Path

import pytest
import torch

from mar import generator as generators
from mar import tokenizer
from mar.autoencoder import AutoencoderConfig
from mar.generator import MAR
from mar.posterior import LatentShape


CONFIG = AutoencoderConfig(
    kind="kl",
    latent_channels=3,
    base_channels=8,
    channel_multipliers=[1, 2],
    num_res_blocks=1,
    encoder_attention=True,
)


def test_a_saved_tokenizer_comes_back(tmp_path: Path, generator: torch.Generator) -> None:
    path = tmp_path / "tokenizer.safetensors"
    model = tokenizer.build(CONFIG)
    model.initialize(generator)
    tokenizer.save(path, model)
    loaded = tokenizer.load(path)
    assert loaded.config == CONFIG
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    images = torch.randn(2, 3, 4, 4, generator=generator)
    moments = model.encode(images)
    assert torch.equal(loaded.encode(images), moments)
    assert torch.equal(loaded.decode(moments[:, :3]), model.decode(moments[:, :3]))


def test_a_generator_is_not_taken_for_a_tokenizer(tiny_model: MAR, tmp_path: Path) -> None:
    path = tmp_path / "generator.safetensors"
    generators.save(path, tiny_model, "a" * 64)
    with pytest.raises(ValueError, match=r"generator\.safetensors does not hold a tokenizer"):
        tokenizer.load(path)


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.safetensors"
    tokenizer.save(path, tokenizer.build(CONFIG))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"tokenizer\.safetensors is not a readable"):
        tokenizer.load(path)


def test_the_shape_of_latents_is_that_of_the_encoder() -> None:
    shape = tokenizer.latent_shape(CONFIG, 8)
    assert shape == LatentShape(channels=3, height=4, width=4)
    moments = tokenizer.build(CONFIG).encode(torch.zeros(1, 3, 8, 8))
    assert moments.shape == (1, 2 * shape.channels, shape.height, shape.width)


def test_images_that_do_not_divide_into_latents_are_refused() -> None:
    expected = r"data\.image_size: 9 pixels do not divide into latents of 2 pixels"
    with pytest.raises(ValueError, match=expected):
        tokenizer.latent_shape(CONFIG, 9)
