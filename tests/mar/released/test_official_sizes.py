"""MAR-L and MAR-H go from a file of the released layout to samples and back, bit for bit.

MAR-B does so through the stages: `tests/stages/test_released_preset.py`.
"""

import json
import zlib
from collections.abc import Iterator
from pathlib import Path

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


@pytest.mark.slow
@pytest.mark.timeout(1800)  # it writes gigabytes
@pytest.mark.parametrize(("letter", "name"), [("l", "mar_large"), ("h", "mar_huge")])
def test_a_published_size_is_imported_sampled_and_exported(
    letter: str, name: str, folder: Path
) -> None:
    preset = presets.resolve(f"imagenet256-mar-{letter}-released-unguided", ROOT / "presets")
    sections = YAML(typ="safe").load(preset)
    section = ReleasedGenerator.model_validate(
        {**sections["generator"], "path": "checkpoint-last.pth"}
    )
    tensors = random_tensors(name)
    before = {key: checksum(value) for key, value in tensors.items()}
    write_generator(folder / section.path, tensors, tensors)
    del tensors
    with torch.device("meta"):
        model = MAR(section, LatentShape(16, 16, 16), num_classes=1000)
    given = read_section(section, model, base=folder)
    # The parameters are the file itself, so that memory holds the weights once.
    model.load_state_dict(section.to_ours(given.chosen), assign=True)

    sample = sections["sample"]
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
