"""The released models' tensors have a place in ours, name by name and shape by shape."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mar.autoencoder import AutoencoderConfig, AutoencoderKL
from mar.generator import MAR, GeneratorConfig
from mar.posterior import LatentShape
from mar.released import from_official, load_official, to_official


GOLDEN = Path(__file__).parents[1] / "golden"
OFFICIAL: dict[str, dict[str, list[int]]] = json.loads(
    (GOLDEN / "official_state_dicts.json").read_text()
)
KL16 = AutoencoderConfig(
    kind="kl",
    latent_channels=16,
    base_channels=128,
    channel_multipliers=[1, 1, 2, 2, 4],
    num_res_blocks=2,
    encoder_attention=True,
)


def published(tiny_model: MAR, name: str) -> nn.Module:
    """Return one of the published models, without memory for its weights."""
    with torch.device("meta"):
        if name == "kl16":
            return AutoencoderKL(KL16)
        changes = {"size": name.removeprefix("mar_"), "patch_size": 1, "condition_tokens": 64}
        config = GeneratorConfig.model_validate({**tiny_model.config.model_dump(), **changes})
        return MAR(config, LatentShape(16, 16, 16), num_classes=1000)


def empty(name: str) -> dict[str, Tensor]:
    return {
        name: torch.empty(shape, dtype=torch.float16, device="meta")
        for name, shape in OFFICIAL[name].items()
    }


@pytest.mark.parametrize("name", sorted(OFFICIAL))
def test_the_released_tensors_fit_exactly(tiny_model: MAR, name: str) -> None:
    model = published(tiny_model, name)
    ours = model.state_dict()
    translated = ours if name == "kl16" else to_official(ours)
    assert {key: list(value.shape) for key, value in translated.items()} == OFFICIAL[name]
    load_official(model, empty(name))


@pytest.mark.parametrize("name", ["mar_base", "mar_large", "mar_huge"])
def test_names_come_back_from_a_translation(tiny_model: MAR, name: str) -> None:
    ours = published(tiny_model, name).state_dict()
    assert list(from_official(to_official(ours))) == list(ours)
    official = empty(name)
    assert list(to_official(from_official(official))) == list(official)


def test_weights_come_back_from_a_translation(tiny_model: MAR) -> None:
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    official = to_official(before)
    tiny_model.initialize(torch.Generator().manual_seed(9))
    load_official(tiny_model, official)
    after = tiny_model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_16_bit_weights_are_loaded_as_32_bit(tiny_model: MAR) -> None:
    halved = {name: value.half() for name, value in to_official(tiny_model.state_dict()).items()}
    load_official(tiny_model, halved)
    loaded = to_official(tiny_model.state_dict())
    assert {value.dtype for value in loaded.values()} == {torch.float32}
    assert all(torch.equal(loaded[name], value.float()) for name, value in halved.items())


def test_all_tensors_that_do_not_fit_are_named(tiny_model: MAR) -> None:
    tensors = to_official(tiny_model.state_dict())
    del tensors["diffloss.net.res_blocks.1.in_ln.weight"]
    tensors["decoder_blocks.2.norm1.bias"] = torch.zeros(24)
    tensors["fake_latent"] = torch.zeros(1, 17)
    before = tiny_model.transformer.mask_token.detach().clone()
    tensors["mask_token"] = torch.zeros(1, 1, 24)
    with pytest.raises(ValueError, match=r"3 of \d+ tensors do not fit") as raised:
        load_official(tiny_model, tensors)
    message = str(raised.value)
    assert "diffloss.net.res_blocks.1.in_ln.weight is missing" in message
    assert "decoder_blocks.2.norm1.bias is unknown" in message
    assert "fake_latent has shape (1, 17), expected (1, 16)" in message
    assert torch.equal(tiny_model.transformer.mask_token, before)  # nothing was loaded


def test_a_long_list_of_misfits_is_cut(tiny_model: MAR) -> None:
    count = len(tiny_model.state_dict())
    with pytest.raises(ValueError, match=rf"{count} of {count} tensors .* is missing; \.\.\.$"):
        load_official(tiny_model, {})
