"""MAR-L goes from a file of the released layout to samples and back, bit for bit.

MAR-B does so through the stages: `tests/stages/test_released_preset.py`. Of MAR-H, names and shapes
alone are tried.
"""

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from torch import Tensor

from mar.latents.posterior import LatentShape
from mar.model.mar import MAR
from mar.released.contents import read_generator
from mar.released.generator import ReleasedGenerator
from mar.released.names import to_released
from mar.released.pickles import write_generator
from mar.released.reader import read_generator as read_section
from mar.sampling.config import SampleConfig
from mar.sampling.generate import generate
from mar.sampling.noise import draw_noise
from stages import presets


ROOT = Path(__file__).parents[3]
OFFICIAL: dict[str, dict[str, list[int]]] = json.loads(
    (ROOT / "tests/golden/official_state_dicts.json").read_text()
)


def random_tensors(name: str) -> dict[str, Tensor]:
    """Return tensors of the released names and shapes, small enough for 20 blocks."""
    rng = torch.Generator().manual_seed(0)
    return {
        key: torch.empty(shape).normal_(0, 0.02, generator=rng)
        for key, shape in OFFICIAL[name].items()
    }


def checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.numpy().tobytes())


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Return a folder for files of some gigabytes, which are not left behind."""
    yield tmp_path
    for path in tmp_path.iterdir():
        path.unlink()


def resolve(preset: str) -> tuple[ReleasedGenerator, dict[str, Any]]:
    """Return the section `generator` of a preset, and its section `sample`."""
    sections = YAML(typ="safe").load(presets.resolve(preset, ROOT / "presets"))
    generator = {**sections["generator"], "path": "checkpoint-last.pth"}
    return ReleasedGenerator.model_validate(generator), sections["sample"]


def test_the_largest_size_has_the_published_names_and_shapes() -> None:
    section, _ = resolve("imagenet256-mar-h-released-unguided")
    published = OFFICIAL["mar_huge"]
    with torch.device("meta"):
        model = MAR(section, LatentShape(16, 16, 16), num_classes=1000)
        tensors = {key: torch.empty(shape) for key, shape in published.items()}
    model.load_state_dict(section.to_ours(tensors), assign=True)
    again = to_released(model.state_dict())
    assert {key: list(value.shape) for key, value in again.items()} == published


@pytest.mark.slow
@pytest.mark.timeout(1800)  # it writes gigabytes
def test_a_published_size_is_imported_sampled_and_exported(folder: Path) -> None:
    name = "mar_large"
    section, sample = resolve("imagenet256-mar-l-released-unguided")
    tensors = random_tensors(name)
    before = {key: checksum(value) for key, value in tensors.items()}
    write_generator(folder / section.path, tensors, tensors)
    del tensors
    with torch.device("meta"):
        model = MAR(section, LatentShape(16, 16, 16), num_classes=1000)
    given = read_section(section, model, base=folder)
    # The parameters are the file itself, so that memory holds the weights once.
    model.load_state_dict(section.to_ours(given.chosen), assign=True)

    changes = {"num_steps": 2, "head": {**sample["head"], "num_steps": 2, "x_0_bound": 3.0}}
    config = SampleConfig.model_validate({**sample, **changes})
    labels = torch.tensor([1, 207])
    latents = generate(model.eval(), labels, draw_noise(model, range(2), config), config)
    assert latents.shape == (2, 16, 16, 16)
    assert latents.isfinite().all()
    assert not torch.equal(latents[0], latents[1])

    ours = to_released(model.state_dict())
    write_generator(folder / "again.pth", ours, ours)
    del model, given, ours
    again = read_generator(folder / "again.pth", None, which="model_ema").tensors
    assert {key: list(value.shape) for key, value in again.items()} == OFFICIAL[name]
    assert {key: checksum(value) for key, value in again.items()} == before
