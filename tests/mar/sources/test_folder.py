"""Every readable image is in exactly one split, and unreadable ones are counted and named."""

import io
import os
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mar.data.formats import EXPECTED
from mar.sources import checked_files
from mar.sources.folder import FolderData
from mar.sources.source import Collection, Surroundings
from mar.sources.unreadable import describe


def make_images(root: Path, *paths: str) -> None:
    for index, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 6), (index, 0, 200)).save(root / path)


def collect_folder(
    root: Path,
    *,
    max_unreadable: int = 0,
    seed: int = 0,
    workers: int = 0,
    max_pixels: int = 10**6,
    kept: Path | None = None,
) -> Collection:
    config = FolderData(
        source="folder",
        path=str(root),
        image_size=8,
        held_out_fraction=0.25,
        max_unreadable=max_unreadable,
        seed=seed,
    )
    return config.collect(Surroundings(Path(), workers, max_pixels, kept))


# Splits and labels


@pytest.mark.parametrize("workers", [0, 1])
def test_a_folder_is_split_by_class(tmp_path: Path, workers: int) -> None:
    make_images(tmp_path, *(f"{name}/{index}.png" for name in "ab" for index in range(8)))
    collection = collect_folder(tmp_path, workers=workers)
    held_out = [row.path for row in collection.rows if row.split == "held_out"]
    assert [path[0] for path in held_out] == ["a", "a", "b", "b"]
    assert collection.count("train") == 12
    assert all(row.size == (tmp_path / row.path).stat().st_size for row in collection.rows)
    assert all(row.image is None for row in collection.rows)
    assert all(
        row.sha256 == sha256((tmp_path / row.path).read_bytes()).digest() for row in collection.rows
    )


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
        f"  b/2.png: text, expected {EXPECTED}"
    )


def test_unreadable_files_within_the_limit_are_left_out(tmp_path: Path) -> None:
    make_images(tmp_path, "a/1.png", "a/2.png", "a/3.png")
    (tmp_path / "a/1.png").write_bytes(b"")
    collection = collect_folder(tmp_path, max_unreadable=1)
    assert collection.unreadable == {"a/1.png": "the file is empty"}
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


def test_the_limit_of_unreadable_files_leaves_the_rows_as_they_are(tmp_path: Path) -> None:
    make_images(tmp_path, "a/1.png", "a/2.png", "a/3.png")
    rows = collect_folder(tmp_path).rows
    (tmp_path / "a/0.png").write_bytes(b"")
    assert collect_folder(tmp_path, max_unreadable=1).rows == rows
    assert collect_folder(tmp_path, max_unreadable=5).rows == rows


# What cannot be used


@pytest.mark.parametrize(
    "make",
    [os.mkfifo, lambda path: path.symlink_to(path), lambda path: path.symlink_to("/dev/zero")],
    ids=["pipe", "link to itself", "device"],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_no_file_is_counted_and_never_waited_for(
    tmp_path: Path, make: Callable[[Path], None], workers: int
) -> None:
    make_images(tmp_path, "a/1.png", "a/2.png")
    make(tmp_path / "a/3.png")
    collection = collect_folder(tmp_path, max_unreadable=1, workers=workers)
    assert list(collection.unreadable) == ["a/3.png"]
    with pytest.raises(ValueError, match=r"1 of 3 files in \S+ cannot be decoded"):
        collect_folder(tmp_path)


def test_a_socket_is_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    make_images(tmp_path, "a/1.png", "a/2.png")
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("a/3.png")
        collection = collect_folder(tmp_path, max_unreadable=1)
    assert "socket" in collection.unreadable["a/3.png"]


def test_a_file_that_memory_does_not_hold_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_images(tmp_path, "a/1.png", "a/2.png")
    (tmp_path / "a/3.png").write_bytes(bytes(100))

    def open_file(descriptor: int, mode: str) -> Any:
        file = open(descriptor, mode)  # noqa: SIM115 (as it is opened there)
        if os.fstat(descriptor).st_size == 100:
            file.close()
            raise MemoryError
        return file

    monkeypatch.setattr("mar.data.reading.open", open_file, raising=False)
    found = collect_folder(tmp_path, max_unreadable=1).unreadable
    assert found == {"a/3.png": "100 bytes, which memory does not hold"}


def test_damaged_photographs_are_counted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = (rng.random((200, 200, 3)) * 60 + np.linspace(0, 190, 200)[:, None, None]).astype("u1")
    make_images(tmp_path, "a/1.png", "a/2.png")
    file = io.BytesIO()
    Image.fromarray(values).save(file, "JPEG")
    whole = file.getvalue()
    half = len(whole) // 2
    (tmp_path / "a/3.jpg").write_bytes(whole)
    (tmp_path / "a/4.jpg").write_bytes(whole[:half] + bytes(400) + whole[half + 400 :])
    (tmp_path / "a/5.jpg").write_bytes(whole[:half] + b"\xff\xd9")
    collection = collect_folder(tmp_path, max_unreadable=2)
    assert list(collection.unreadable) == ["a/4.jpg", "a/5.jpg"]
    assert all(reason.startswith("damaged: ") for reason in collection.unreadable.values())


def test_images_of_too_many_pixels_are_refused_and_the_variable_named(tmp_path: Path) -> None:
    make_images(tmp_path, "a/1.png", "a/2.png")
    Image.new("L", (100, 100)).save(tmp_path / "a/3.png")
    with pytest.raises(ValueError, match="MAR_MAX_PIXELS") as caught:
        collect_folder(tmp_path, max_pixels=9999, max_unreadable=9)
    assert "  a/3.png: 100 x 100 pixels, which are more than 9999" in str(caught.value)
    assert len(collect_folder(tmp_path, max_pixels=10_000).rows) == 3


# What is said


def warning(collection: Collection, begin: str) -> str:
    found = [text for text in collection.warnings if begin in text]
    assert len(found) == 1, collection.warnings
    return found[0]


def test_nothing_is_said_of_what_is_usual(tmp_path: Path) -> None:
    make_images(tmp_path, "a/1.png", "a/2.png", "b/1.png", "b/2.png")
    collection = collect_folder(tmp_path)
    assert (collection.remarks, collection.warnings) == ([], [])


def test_nested_folders_are_said_with_their_counts(tmp_path: Path) -> None:
    make_images(tmp_path, "dogs/beagle/1.png", "dogs/beagle/2.png", "dogs/pug/1.png", "cats/1.png")
    make_images(tmp_path, "cats/2.png")
    assert warning(collect_folder(tmp_path), "folders within") == (
        "3 images lie in folders within class folders, which are no classes of their own (1 of 2 "
        "classes; dogs has 2, as dogs/beagle)"
    )


def test_classes_that_hold_the_same_folders_are_said_to_look_like_splits(tmp_path: Path) -> None:
    for split in ("apprentissage", "essai"):
        make_images(tmp_path, *(f"{split}/{name}.png" for name in ("cat/1", "cat/2", "dog/1")))
    assert warning(collect_folder(tmp_path), "same").startswith(
        "all 2 class folders hold the same 2 folders (cat, dog) and no image of their own: "
    )
    make_images(tmp_path, "essai/3.png")
    assert not any("the same" in text for text in collect_folder(tmp_path).warnings)


def test_one_class_and_uneven_classes_are_doubted(tmp_path: Path) -> None:
    make_images(tmp_path, "a/1.png", "a/2.png")
    assert warning(collect_folder(tmp_path), "one class") == "there is one class only, a"
    make_images(tmp_path, *(f"b/{index}.png" for index in range(40)), "c/1.png")
    assert warning(collect_folder(tmp_path), "uneven") == (
        "the classes are very uneven: b has 40 images, c has 1"
    )
    assert warning(collect_folder(tmp_path), "one image") == (
        "1 of 3 classes have one image only, as c"
    )


def test_16_bit_images_that_use_little_of_the_range_are_said(tmp_path: Path) -> None:
    make_images(tmp_path, "a/0.png")
    for index in range(3):
        values = np.full((6, 9), 4095, dtype=np.uint16)
        Image.fromarray(values).save(tmp_path / "a" / f"{index + 1}.png")
    assert warning(collect_folder(tmp_path), "bits") == (
        "3 of 4 images have 16 bits and use at most 6 % of their range, so they are nearly black; "
        "scale their values"
    )


def test_masks_of_classes_are_said_to_be_black(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for index in range(3):
        Image.fromarray(np.full((6, 9), index, dtype=np.uint8)).save(tmp_path / f"a/{index}.png")
    assert "have 8 bits and use at most 0.8 %" in warning(collect_folder(tmp_path), "bits")


def test_the_share_of_ignored_files_and_their_kinds_are_said(tmp_path: Path) -> None:
    make_images(tmp_path, "a/1.png", "a/2.png", "b/1.png", "b/2.png")
    for index in range(5):
        (tmp_path / "a" / f"{index}.HEIC").touch()
    (tmp_path / "notes.txt").touch()
    collection = collect_folder(tmp_path)
    assert collection.remarks[0].startswith(
        "ignored 6 of 10 files (60 %) that are no images by their names (5 .heic, 1 .txt), as "
        "a/0.HEIC; images end in .jpg, "
    )
    assert "more files are ignored (6) than read (4)" in warning(collection, "ignored")


# What is kept


def test_only_new_and_changed_files_are_read_again(tmp_path: Path) -> None:
    root, kept = tmp_path / "images", tmp_path / "kept"
    make_images(root, "a/1.png", "a/2.png", "b/1.png", "b/2.png")
    age()
    first = collect_folder(root, kept=kept)
    again = collect_folder(root, kept=kept)
    assert (first.num_read, again.num_read, again.num_known) == (4, 0, 4)
    assert again.rows == first.rows
    make_images(root, "b/2.png", "b/3.png")  # one is other content of the same size
    age()
    changed = collect_folder(root, kept=kept)
    assert (changed.num_read, changed.num_known) == (2, 3)
    assert changed.rows == collect_folder(root).rows
    (root / "b/3.png").unlink()
    assert collect_folder(root, kept=kept).rows == collect_folder(root).rows


@pytest.mark.parametrize("damage", [lambda _: b"", lambda old: old[:50] + b"x" + old[51:]])
def test_what_is_kept_and_damaged_is_made_again(tmp_path: Path, damage: Any) -> None:
    root, kept = tmp_path / "images", tmp_path / "kept"
    make_images(root, "a/1.png", "a/2.png")
    age()
    first = collect_folder(root, kept=kept)
    (file,) = kept.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert (collect_folder(root, kept=kept), first.num_read) == (first, 2)
    assert collect_folder(root, kept=kept).num_read == 0


def test_what_other_code_found_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, kept = tmp_path / "images", tmp_path / "kept"
    make_images(root, "a/1.png", "a/2.png")
    age()
    collect_folder(root, kept=kept)
    monkeypatch.setattr(checked_files, "MODULES", checked_files.MODULES[1:])
    assert collect_folder(root, kept=kept).num_read == 2


def test_a_refused_folder_is_not_read_twice(tmp_path: Path) -> None:
    root, kept = tmp_path / "images", tmp_path / "kept"
    make_images(root, "a/1.png", "a/2.png", "a/3.png")
    (root / "a/3.png").write_bytes(b"hello")
    age()
    with pytest.raises(ValueError, match=r"data\.max_unreadable is 0"):
        collect_folder(root, kept=kept)
    collection = collect_folder(root, kept=kept, max_unreadable=1)
    assert (collection.num_read, list(collection.unreadable)) == (0, ["a/3.png"])


def test_files_just_written_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They can change once more within the same tick of the file system's clock."""
    monkeypatch.setattr(checked_files, "SETTLED", 10**12)
    root, kept = tmp_path / "images", tmp_path / "kept"
    make_images(root, "a/1.png", "a/2.png")
    collect_folder(root, kept=kept)
    assert collect_folder(root, kept=kept).num_read == 2


def age() -> None:
    """Wait until the times of the files just written lie in the past."""
    time.sleep(checked_files.SETTLED / 1e9 + 0.02)
