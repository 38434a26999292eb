"""An image set gives the images that `prepare` saw, or says which of them has changed."""

import multiprocessing
import os
import re
from hashlib import sha256
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mar.data import dataset as data
from mar.data.batches import batch_indices
from mar.data.dataset import ImageSet, image_batches, load_images
from mar.data.manifest import Row, Split, write_manifest
from mar.sources.folder import FolderData
from mar.sources.no_images import NoData
from mar.sources.source import Surroundings


SIZE = 4
SURROUNDINGS = Surroundings(Path(), workers=0, max_pixels=10**6)


def make_folder(root: Path, num: int = 12) -> list[torch.Tensor]:
    """Write single-coloured images of two classes, and return them as they should load."""
    images: list[torch.Tensor] = []
    for index in range(num):
        file = root / "ab"[index % 2] / f"{index:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 6), (index, 2 * index, 255 - index)).save(file)
        colour = torch.tensor([index, 2 * index, 255 - index], dtype=torch.uint8)
        images.append(colour.reshape(3, 1, 1).expand(3, SIZE, SIZE))
    return images


def make_manifest(tmp_path: Path, *, keep: bool = False) -> tuple[Path, list[torch.Tensor]]:
    images = [] if keep else make_folder(tmp_path / "images")
    config = FolderData(
        source="folder",
        path=str(tmp_path / "images"),
        image_size=SIZE,
        held_out_fraction=0.3,
        max_unreadable=0,
        seed=0,
    )
    collection = config.collect(SURROUNDINGS)
    write_manifest(tmp_path / "manifest.parquet", collection.class_names, collection.rows)
    return tmp_path / "manifest.parquet", images


def open_set(manifest: Path, split: Split) -> ImageSet:
    return ImageSet(manifest, split, SIZE, root=manifest.parent / "images")


def index_of(path: str) -> int:
    return int(path[2:5])


# Manifest


def test_the_manifest_is_a_plain_parquet_file(tmp_path: Path) -> None:
    rows = [
        Row("a/1.png", None, 0, 7, bytes(range(32)), "train"),
        Row("digits/0", b"png", 1, 3, bytes(32), "held_out"),
    ]
    write_manifest(tmp_path / "m.parquet", ["a", "b"], rows)
    table = pq.read_table(tmp_path / "m.parquet")
    types = {field.name: str(field.type) for field in table.schema}
    assert types == {
        "path": "string",
        "image": "binary",
        "label": "int32",
        "bytes": "int64",
        "sha256": "fixed_size_binary[32]",
        "split": "string",
    }
    assert [Row(*row.values()) for row in table.to_pylist()] == rows
    assert table.schema.metadata == {b"class_names": b'["a", "b"]'}


def test_the_same_images_make_the_same_manifest_wherever_they_lie(tmp_path: Path) -> None:
    manifest, _ = make_manifest(tmp_path / "here")
    moved, _ = make_manifest(tmp_path / "there" / "and deeper")
    assert manifest.read_bytes() == moved.read_bytes()


# ImageSet


@pytest.mark.parametrize(("num", "chosen"), [(7, [0, 1, 2, 3, 4, 5, 6]), (3, [0, 2, 5])])
def test_as_many_images_as_asked_for_are_spread_over_the_set(
    tmp_path: Path, num: int, chosen: list[int]
) -> None:
    manifest, _ = make_manifest(tmp_path)
    train = open_set(manifest, "train")
    assert torch.equal(train.spread(num), train.stack(chosen))
    assert len(train.spread(100)) == 8


def test_the_splits_hold_every_image_once(tmp_path: Path) -> None:
    manifest, images = make_manifest(tmp_path)
    train = open_set(manifest, "train")
    held_out = open_set(manifest, "held_out")
    assert (len(train), len(held_out)) == (8, 4)
    assert sorted(map(index_of, train.names + held_out.names)) == list(range(len(images)))
    for split in (train, held_out):
        assert split.num_classes == 2
        assert split.class_names == ["a", "b"]
        for index, path in enumerate(split.names):
            image, label = split[index]
            assert torch.equal(image, images[index_of(path)])
            assert split.class_names[label] == path[0]
            assert split.labels[index] == label


def test_images_inside_the_manifest_need_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.fromarray(np.full((8, 8), 16, dtype=np.uint8)).save(file)
    content = file.read_bytes()
    row = Row("digits/0000", content, 0, len(content), sha256(content).digest(), "train")
    write_manifest(tmp_path / "m.parquet", ["0"], [row])
    file.unlink()
    images = ImageSet(tmp_path / "m.parquet", "train", 16)
    image, label = images[0]
    assert torch.equal(image, torch.full((3, 16, 16), 16, dtype=torch.uint8))
    assert label == 0


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    row = Row("digits/0", b"png", 1, 3, bytes(32), "train")
    write_manifest(tmp_path / "m.parquet", ["0"], [row])
    expected = f"{tmp_path}/m.parquet lists no images of the split held_out"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        ImageSet(tmp_path / "m.parquet", "held_out", SIZE)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_changed_file_is_named(tmp_path: Path, workers: int) -> None:
    manifest, _ = make_manifest(tmp_path)
    images = open_set(manifest, "train")
    file = tmp_path / "images" / images.names[3]
    size = file.stat().st_size
    file.write_bytes(file.read_bytes() + b"!")
    expected = f"{file} has {size + 1} bytes, {size} when prepare ran"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        load_images(images, workers)
    Image.new("RGB", (9, 6), (200, 0, 0)).save(file, compress_level=0)
    other = file.read_bytes()
    Image.new("RGB", (9, 6), (0, 200, 0)).save(file, compress_level=0)
    assert len(other) == file.stat().st_size
    manifest, _ = make_manifest(tmp_path, keep=True)
    images = open_set(manifest, "train")
    file.write_bytes(other)  # a sound image of the same size
    expected = f"{file} has other content than when prepare ran"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        load_images(images, workers)
    file.unlink()
    expected = f"{file} is gone since prepare ran, or the data folder (data.path) lies elsewhere"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        load_images(images, workers)
    os.mkfifo(file)
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))}: not a file, but a pipe"):
        load_images(images, workers)


def test_an_image_inside_the_manifest_is_compared_as_well(tmp_path: Path) -> None:
    row = Row("digits/0", b"png", 0, 3, bytes(32), "train")
    write_manifest(tmp_path / "m.parquet", ["0"], [row])
    with pytest.raises(ValueError, match=r"^digits/0 has other content than when prepare ran$"):
        ImageSet(tmp_path / "m.parquet", "train", SIZE)[0]


# Loading


@pytest.mark.parametrize("workers", [0, 1])
def test_all_images_load_in_order(tmp_path: Path, workers: int) -> None:
    manifest, images = make_manifest(tmp_path)
    split = open_set(manifest, "train")
    expected = torch.stack([images[index_of(path)] for path in split.names])
    assert torch.equal(load_images(split, workers), expected)


@pytest.mark.parametrize("batch_size", [3, 8, 20])  # of 8 images; 20 needs two chunks of 16
@pytest.mark.parametrize(("in_memory_bytes", "workers"), [(10**9, 0), (0, 0), (0, 1)])
def test_a_batch_holds_the_images_of_its_step(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    in_memory_bytes: int,
    workers: int,
    batch_size: int,
) -> None:
    monkeypatch.setattr(data, "IN_MEMORY_BYTES", in_memory_bytes)
    manifest, _ = make_manifest(tmp_path)
    images = open_set(manifest, "train")
    all_images = load_images(images, 0)
    batches = image_batches(images, batch_size, seed=7, first_step=2, workers=workers)
    for step, (batch, labels) in enumerate(islice(batches, 6), start=2):
        chosen = batch_indices(len(images), batch_size, seed=7, step=step)
        assert torch.equal(batch, all_images[chosen])
        assert torch.equal(labels, images.labels[chosen])


def test_workers_end_with_the_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "IN_MEMORY_BYTES", 0)
    manifest, _ = make_manifest(tmp_path)
    images = open_set(manifest, "train")
    batches = image_batches(images, 4, seed=0, first_step=0, workers=1)
    next(batches)
    assert multiprocessing.active_children()
    del batches
    assert not multiprocessing.active_children()


def test_data_without_images_are_an_empty_set(tmp_path: Path) -> None:
    config = NoData(source="none", image_size=SIZE, classes=["a", "b"])
    collection = config.collect(SURROUNDINGS)
    write_manifest(tmp_path / "m.parquet", collection.class_names, collection.rows)
    images = ImageSet(tmp_path / "m.parquet", "held_out", SIZE)
    assert (len(images), images.num_classes, images.names) == (0, 2, [])
    assert images.spread(10).shape == (0, 3, SIZE, SIZE)
    assert load_images(images, 0).shape == (0, 3, SIZE, SIZE)
