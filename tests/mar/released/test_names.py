"""The released models' tensors have a place in ours, name by name and shape by shape."""

import json
import math
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML
from torch import Tensor, nn

from mar.latents.posterior import LatentShape
from mar.model.mar import MAR
from mar.released.generator import TrainedGenerator
from mar.released.names import from_released, to_released
from mar.released.shapes import check_tensors
from mar.released.tokenizer import TrainedAutoencoder
from mar.tokenizers.kl import AutoencoderKL
from stages import presets


GOLDEN = Path(__file__).parents[2] / "golden"
OFFICIAL: dict[str, dict[str, list[int]]] = json.loads(
    (GOLDEN / "official_state_dicts.json").read_text()
)
PRESETS = {
    "kl16": "imagenet256-mar-b",
    "mar_base": "imagenet256-mar-b",
    "mar_large": "imagenet256-mar-l",
    "mar_huge": "imagenet256-mar-h",
}


def published(name: str) -> nn.Module:
    """Return one of the published models as its preset has it, without memory for its weights."""
    text = presets.resolve(PRESETS[name], GOLDEN.parents[1] / "presets")
    sections = YAML(typ="safe").load(text)
    tokenizer = TrainedAutoencoder.model_validate(sections["tokenizer"])
    config = TrainedGenerator.model_validate(sections["generator"])
    side = sections["data"]["image_size"] // tokenizer.stride
    with torch.device("meta"):
        if name == "kl16":
            return AutoencoderKL(tokenizer)
        latent = LatentShape(tokenizer.latent_channels, side, side)
        return MAR(config, latent, num_classes=1000)


def empty(name: str) -> dict[str, Tensor]:
    return {
        name: torch.empty(shape, dtype=torch.float16, device="meta")
        for name, shape in OFFICIAL[name].items()
    }


@pytest.mark.parametrize("name", sorted(OFFICIAL))
def test_the_released_tensors_fit_exactly(name: str) -> None:
    model = published(name)
    ours = model.state_dict()
    translated = ours if name == "kl16" else to_released(ours)
    assert {key: list(value.shape) for key, value in translated.items()} == OFFICIAL[name]
    check_tensors(translated, empty(name))


@pytest.mark.parametrize(
    ("name", "count"),
    [  # MAR, Table 4 and section 4.1, to the last parameter
        ("mar_base", 207_924_768),
        ("mar_large", 478_326_304),
        ("mar_huge", 942_403_104),
        ("kl16", 66_456_019),
    ],
)
def test_the_published_models_have_as_many_parameters_as_the_released(
    name: str, count: int
) -> None:
    assert sum(parameter.numel() for parameter in published(name).parameters()) == count
    assert sum(math.prod(shape) for shape in OFFICIAL[name].values()) == count


@pytest.mark.parametrize("name", ["mar_base", "mar_large", "mar_huge"])
def test_names_come_back_from_a_translation(name: str) -> None:
    ours = published(name).state_dict()
    assert list(from_released(to_released(ours))) == list(ours)
    released = empty(name)
    assert list(to_released(from_released(released))) == list(released)


def test_weights_come_back_from_a_translation(tiny_model: MAR) -> None:
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    released = to_released(before)
    tiny_model.initialize(torch.Generator().manual_seed(9))
    tiny_model.load_state_dict(from_released(released))
    after = tiny_model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_16_bit_weights_become_32_bit(tiny_model: MAR) -> None:
    halved = {name: value.half() for name, value in to_released(tiny_model.state_dict()).items()}
    found = to_released(from_released(halved))
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert all(torch.equal(found[name], value.float()) for name, value in halved.items())


def test_all_tensors_that_do_not_fit_are_named(tiny_model: MAR) -> None:
    tensors = to_released(tiny_model.state_dict())
    del tensors["diffloss.net.res_blocks.1.in_ln.weight"]
    tensors["decoder_blocks.2.norm1.bias"] = torch.zeros(24)
    tensors["fake_latent"] = torch.zeros(1, 17)
    with pytest.raises(ValueError, match="tensors do not fit") as raised:
        check_tensors(to_released(tiny_model.state_dict()), tensors)
    assert str(raised.value) == (
        f"tensors do not fit the {len(tiny_model.state_dict())} expected: "
        "1 missing (diffloss.net.res_blocks.1.in_ln.weight), "
        "1 unknown (decoder_blocks.2.norm1.bias), "
        "1 of another shape (fake_latent (1, 17), expected (1, 16))"
    )


def test_a_long_list_of_misfits_is_cut_and_counted(tiny_model: MAR) -> None:
    ours = tiny_model.state_dict()
    expected, count = to_released(ours), len(ours)
    with pytest.raises(ValueError, match=rf": {count} missing \(.*; {count - 5} more\)$"):
        check_tensors(expected, {})
    with pytest.raises(ValueError, match=rf": {count} missing \(.*\), {count} unknown \(transf"):
        check_tensors(expected, ours)  # not translated
    larger = {name: torch.zeros(*value.shape, 1) for name, value in expected.items()}
    with pytest.raises(ValueError, match=rf"the {count} expected: {count} of another shape \("):
        check_tensors(expected, larger)
