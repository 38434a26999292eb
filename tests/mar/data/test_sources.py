"""Every readable image is in exactly one split, and unreadable ones are counted and named."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from mar.data.config import DigitsData, FolderData
from mar.data.sources import Collection, collect, describe, hold_out


def make_images(root: Path, *paths: str) -> None:
    for index, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 6), (index, 0, 0)).save(root / path)


def collect_folder(
    root: Path, *, max_unreadable: int = 0, seed: int = 0, workers: int = 0
) -> Collection:
    config = FolderData(
        source="folder",
        path=str(root),
        image_size=8,
        held_out_fraction=0.25,
        max_unreadable=max_unreadable,
        seed=seed,
    )
    return collect(config, workers)


def collect_digits(held_out_fraction: float = 0.2, seed: int = 0) -> Collection:
    config = DigitsData(
        source="digits", image_size=16, held_out_fraction=held_out_fraction, seed=seed
    )
    return collect(config, 0)


# Splits


@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 99),
)
def test_each_class_is_split_by_the_fraction(counts: list[int], fraction: float, seed: int) -> None:
    labels = torch.cat([torch.full((num,), label) for label, num in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    held_out = hold_out(labels, fraction, seed)
    for label, num in enumerate(counts):
        found = int(held_out[labels == label].sum())
        if num < 2:
            assert found == 0
        else:
            assert 1 <= found <= num - 1
            assert abs(found - fraction * num) <= 1


def test_the_seed_alone_chooses_what_is_held_out() -> None:
    labels = torch.arange(1000) % 10
    first = hold_out(labels, 0.2, 0)
    assert torch.equal(first, hold_out(labels, 0.2, 0))
    assert not torch.equal(first, hold_out(labels, 0.2, 1))
    assert first.sum() == 200


# Digits


def test_digits_keep_their_pixels_and_labels() -> None:
    collection = collect_digits()
    images, labels = load_digits(return_X_y=True)
    assert len(collection.rows) == 1797
    assert collection.info.class_names == list("0123456789")
    for index in (0, 1, 1000, 1796):
        row = collection.rows[index]
        assert row.path == f"digits/{index:04d}"
        assert row.label == labels[index]
        assert row.image is not None
        assert row.size == len(row.image)
        decoded = np.array(Image.open(io.BytesIO(row.image)), dtype=np.float64)
        assert np.abs(decoded.reshape(64) - images[index] * 255 / 16).max() <= 0.5


def test_digits_hold_out_a_fifth_of_each_class() -> None:
    collection = collect_digits(0.2)
    for label in range(10):
        splits = [row.split for row in collection.rows if row.label == label]
        assert abs(splits.count("held_out") / len(splits) - 0.2) < 0.01
    assert collection.count("train") + collection.count("held_out") == 1797


# Folders


@pytest.mark.parametrize("workers", [0, 1])
def test_a_folder_is_split_by_class(tmp_path: Path, workers: int) -> None:
    make_images(tmp_path, *(f"{name}/{index}.png" for name in "ab" for index in range(8)))
    collection = collect_folder(tmp_path, workers=workers)
    held_out = [row.path for row in collection.rows if row.split == "held_out"]
    assert [path[0] for path in held_out] == ["a", "a", "b", "b"]
    assert collection.count("train") == 12
    assert all(row.size == (tmp_path / row.path).stat().st_size for row in collection.rows)
    assert all(row.image is None for row in collection.rows)
    assert (collection.info.source, collection.info.root) == ("folder", str(tmp_path))


def test_train_and_val_are_taken_as_they_are(tmp_path: Path) -> None:
    make_images(tmp_path, "train/a/1.png", "train/a/2.png", "val/a/1.png")
    splits = {row.path: row.split for row in collect_folder(tmp_path).rows}
    assert splits == {"train/a/1.png": "train", "train/a/2.png": "train", "val/a/1.png": "held_out"}


def test_too_many_unreadable_files_are_counted_and_named(tmp_path: Path) -> None:
    make_images(tmp_path, "a/1.png", "a/2.png", "b/1.png", "b/2.png")
    (tmp_path / "a/1.png").write_bytes(b"")
    (tmp_path / "b/2.png").write_text("hello")
    with pytest.raises(ValueError, match="unreadable") as caught:
        collect_folder(tmp_path, max_unreadable=1)
    assert str(caught.value) == (
        f"2 of 4 files in {tmp_path} cannot be decoded, data.max_unreadable is 1:\n"
        "  a/1.png: the file is empty\n"
        "  b/2.png: not a BMP, GIF, JPEG, PNG, PPM, TIFF or WebP image"
    )


def test_unreadable_files_within_the_limit_are_left_out(tmp_path: Path) -> None:
    make_images(tmp_path, "a/1.png", "a/2.png", "a/3.png")
    (tmp_path / "a/1.png").write_bytes(b"")
    collection = collect_folder(tmp_path, max_unreadable=1)
    assert collection.unreadable == {"a/1.png": "the file is empty"}
    assert collection.info.unreadable == ["a/1.png"]
    assert sorted(row.path for row in collection.rows) == ["a/2.png", "a/3.png"]
    assert collection.count("held_out") == 1  # the files that are left are split


def test_a_file_that_cannot_be_opened_is_unreadable(tmp_path: Path) -> None:
    make_images(tmp_path, "a/1.png", "a/3.png")
    (tmp_path / "a/2.png").symlink_to("nowhere.png")
    collection = collect_folder(tmp_path, max_unreadable=1)
    assert collection.unreadable == {"a/2.png": "No such file or directory"}


def test_a_class_that_loses_all_its_images_is_named(tmp_path: Path) -> None:
    make_images(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "b/1.png").write_bytes(b"")
    with pytest.raises(ValueError, match=f"^no image of the class b in {tmp_path} can be decoded$"):
        collect_folder(tmp_path, max_unreadable=1)


def test_classes_of_one_image_leave_none_to_hold_out(tmp_path: Path) -> None:
    make_images(tmp_path, "a/1.png", "b/1.png")
    with pytest.raises(ValueError, match=f"no image in {tmp_path} can be held out, as each class"):
        collect_folder(tmp_path)
    make_images(tmp_path, "b/2.png")
    assert collect_folder(tmp_path).count("held_out") == 1


def test_a_split_that_loses_all_its_images_is_named(tmp_path: Path) -> None:
    make_images(tmp_path, "train/a/1.png", "val/a/1.png")
    (tmp_path / "val/a/1.png").write_bytes(b"")
    with pytest.raises(ValueError, match=f"no image of the held_out folder in {tmp_path} can be"):
        collect_folder(tmp_path, max_unreadable=1)


def test_only_the_first_unreadable_files_are_named() -> None:
    text = describe({f"{index}.png": "broken" for index in range(12)})
    assert text.splitlines()[9:] == ["  9.png: broken", "  and 2 more"]
