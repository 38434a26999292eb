"""Exported samples are read by others as they were; what cannot be whole is not there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mar.sampling.export import write_npz, write_pictures
from mar.sampling.store import SampleSet, shard_path, write_shard


@pytest.fixture
def images() -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(256, (100, 3, 6, 4), generator=rng, dtype=torch.uint8)


@pytest.fixture
def samples(images: torch.Tensor, tmp_path: Path) -> SampleSet:
    """Return 100 images in two shards, the first of which is no multiple of a part."""
    for number, part in enumerate(torch.arange(100).split(70)):
        write_shard(
            shard_path(tmp_path / "samples", number),
            images[part],
            labels=part % 7,
            first_index=int(part[0]),
            num_classes=7,
            seed=0,
        )
    return SampleSet(tmp_path / "samples")


def test_an_npz_is_what_numpy_would_have_written(
    samples: SampleSet, images: torch.Tensor, tmp_path: Path
) -> None:
    seen: list[int] = []
    write_npz(samples, tmp_path / "a.npz", lambda part: seen.append(len(part)))
    pixels = images.permute(0, 2, 3, 1).numpy()
    labels = np.arange(100) % 7
    np.savez(tmp_path / "numpy.npz", pixels, labels)
    with np.load(tmp_path / "a.npz") as found, np.load(tmp_path / "numpy.npz") as expected:
        assert found.files == expected.files == ["arr_0", "arr_1"]
        for name in found.files:
            assert found[name].dtype == expected[name].dtype
            assert np.array_equal(found[name], expected[name])
    assert seen == [64, 6, 30]
    write_npz(samples, tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_pictures_and_their_labels_are_those_of_the_samples(
    samples: SampleSet, images: torch.Tensor, tmp_path: Path
) -> None:
    write_pictures(samples, tmp_path / "pictures")
    rows = (tmp_path / "pictures/labels.csv").read_text().splitlines()
    assert rows[0] == "file,label"
    assert len(rows) == 101
    for index, row in enumerate(rows[1:]):
        name, label = row.split(",")
        assert int(label) == index % 7
        found = np.asarray(Image.open(tmp_path / "pictures" / name))
        assert np.array_equal(found, images[index].permute(1, 2, 0).numpy())
    with pytest.raises(ValueError, match="pictures exists and is not an empty folder"):
        write_pictures(samples, tmp_path / "pictures")


def test_prompts_are_beside_their_pictures(images: torch.Tensor, tmp_path: Path) -> None:
    prompts = [f"a cat, number {number % 2}" for number in range(3)]
    write_shard(
        shard_path(tmp_path / "samples", 0),
        images[:3],
        labels=torch.zeros(3, dtype=torch.long),
        first_index=0,
        num_classes=1,
        seed=0,
        prompts=prompts,
        sources=["0.jpg", "1.jpg", "2.jpg"],
    )
    write_pictures(SampleSet(tmp_path / "samples"), tmp_path / "pictures")
    rows = (tmp_path / "pictures/metadata.jsonl").read_text().splitlines()
    assert [json.loads(row) for row in rows] == [
        {"file_name": f"{number:06d}.png", "text": prompt, "source": f"{number}.jpg"}
        for number, prompt in enumerate(prompts)
    ]
    assert not (tmp_path / "pictures/labels.csv").exists()


@pytest.mark.parametrize("write", [write_npz, write_pictures])
def test_an_export_that_is_broken_off_leaves_nothing(
    samples: SampleSet, tmp_path: Path, write: Any
) -> None:
    def interrupt(_: np.ndarray) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(samples, tmp_path / "target", interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["samples"]
