"""Images in Parquet files are listed once, and then read one by one from where they lie."""

import hashlib
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sample_shards import jpeg, write_parquet

from mar.data.dataset import ImageSet
from mar.data.manifest import Split, write_manifest
from mar.data.shards import read_image, unpack
from mar.sources.parquet import ParquetData
from mar.sources.parquet_pages import snappy_cuts
from mar.sources.source import Collection, Surroundings


SIZE = 16


def collect(
    root: Path,
    *,
    workers: int = 0,
    max_pixels: int = 10**6,
    kept: Path | None = None,
    **changes: Any,
) -> Collection:
    section = {
        "source": "parquet",
        "path": str(root),
        "image_size": SIZE,
        "image_column": "image",
        "label_column": "label",
        "caption_column": None,
        "class_names": None,
        "held_out_fraction": 0.25,
        "max_unreadable": 0,
        "seed": 0,
    }
    config = ParquetData.model_validate(section | changes)
    return config.collect(Surroundings(Path(), workers, max_pixels, kept))


def open_set(collection: Collection, root: Path, split: Split = "train") -> ImageSet:
    manifest = root.parent / "manifest.parquet"
    write_manifest(manifest, collection.class_names, collection.rows)
    return ImageSet(manifest, split, SIZE, root=root)


# Where images lie in a file


WAYS: list[dict[str, Any]] = [
    {},  # as pyarrow does by default: Snappy, all images in the dictionary's page
    {"use_dictionary": False},
    {"use_dictionary": False, "data_page_version": "2.0", "write_batch_size": 2},
    {"compression": "none", "row_group_size": 7},
    {"compression": "none", "use_dictionary": False, "write_batch_size": 1, "data_page_size": 9},
    {"compression": "zstd", "row_group_size": 5},
    {"compression": "gzip", "data_page_version": "2.0", "use_dictionary": False},
    {"compression": "brotli"},
    {"compression": "lz4"},
    {"use_content_defined_chunking": True, "use_dictionary": False, "write_page_index": True},
    {"dictionary_pagesize_limit": 9_000, "write_batch_size": 2, "data_page_size": 9},
    {
        "use_dictionary": False,
        "column_encoding": {"image.bytes": "DELTA_LENGTH_BYTE_ARRAY", "label": "PLAIN"},
    },
]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_images_are_read_back_however_a_file_is_written(
    tmp_path: Path, way: dict[str, Any]
) -> None:
    images = [jpeg(index, 30 + 20 * (index % 5)) for index in range(20)]
    images[11] = images[3]
    write_parquet(tmp_path / "a.parquet", images, [0] * 20, **way)
    for row, image in zip(collect(tmp_path).rows, images, strict=True):
        assert row.place is not None
        assert read_image(tmp_path, row.place, row.size) == image
        assert row.sha256 == hashlib.sha256(image).digest()


def test_of_snappy_and_of_no_compression_little_more_than_an_image_is_read(tmp_path: Path) -> None:
    images = [jpeg(index, 400) for index in range(12)]  # of 150 kB
    for compression in ("snappy", "none"):
        root = tmp_path / compression
        write_parquet(root / "a.parquet", images, [0] * 12, compression=compression)
        for row in collect(root).rows:
            assert row.place is not None
            more = 0 if compression == "none" else 2 * 65536
            assert row.size <= row.place.unpacked <= row.size + more
            assert row.place.stored <= row.place.unpacked + more / 1000


def test_snappy_blocks_unpack_alone_and_only_where_they_do_are_cuts() -> None:
    content = os.urandom(150_000)
    packed = pa.compress(content, "snappy", asbytes=True)[3:]  # without its length
    cuts = snappy_cuts(packed, len(content))
    assert [start for start, _ in cuts] == [0, 65536, 131072, 150_000]
    for (start, first), (end, last) in pairwise(cuts):
        assert unpack(packed[first:last], "snappy", end - start) == content[start:end]
    assert snappy_cuts(packed, 150_001) == []
    text = b"".join(b"%d " % index for index in range(30_000))
    assert snappy_cuts(pa.compress(text, "snappy", asbytes=True)[3:], len(text)) == []


def test_compressible_images_are_read_from_whole_pages(tmp_path: Path) -> None:
    images = [b"BM" + bytes(70_000) + jpeg(index) for index in range(3)]
    write_parquet(tmp_path / "a.parquet", [*images, jpeg(0), jpeg(1)], [0] * 5)
    collection = collect(tmp_path, max_unreadable=3)
    for row, image in zip(collection.rows, (jpeg(0), jpeg(1)), strict=True):
        assert row.place is not None
        assert read_image(tmp_path, row.place, row.size) == image


def test_images_in_pieces_are_refused(tmp_path: Path) -> None:
    write_parquet(
        tmp_path / "a.parquet",
        [jpeg(0), jpeg(1)],
        [0, 0],
        use_dictionary=False,
        column_encoding={"image.bytes": "DELTA_BYTE_ARRAY", "label": "PLAIN"},
    )
    with pytest.raises(ValueError, match=r"a.parquet: the column image.bytes is encoded so that"):
        collect(tmp_path)


def test_that_reading_one_image_unpacks_many_is_said(tmp_path: Path) -> None:
    write_parquet(
        tmp_path / "a.parquet", [jpeg(i) for i in range(40)], [0] * 40, compression="zstd"
    )
    (warning,) = [text for text in collect(tmp_path).warnings if "unpacked" in text]
    assert re.match(r"to read one image, 0.1 MB must be unpacked, 4\d times its size", warning)


# Splits and labels


@pytest.mark.parametrize("workers", [0, 2])
def test_files_are_split_by_their_names(tmp_path: Path, workers: int) -> None:
    root = tmp_path / "data"
    for index in range(3):
        name = f"data/train-0000{index}-of-00003.parquet"
        images = [jpeg(10 * index + at) for at in range(4)]
        write_parquet(root / name, images, [0, 1, 0, 1], names=["cat", "dog"])
    validation = "data/Validation-00000-of-00001.parquet"
    write_parquet(root / validation, [jpeg(90), jpeg(91)], [1, 0], names=["cat", "dog"])
    write_parquet(root / "data/test-00000-of-00001.parquet", [jpeg(99)], [-1], names=["cat", "dog"])
    (root / "README.md").touch()
    collection = collect(root, workers=workers)
    assert collection.class_names == ["cat", "dog"]
    rows = [(row.path, row.label, row.split) for row in collection.rows]
    assert rows[:2] == [(f"{validation}/0", 1, "held_out"), (f"{validation}/1", 0, "held_out")]
    train = "data/train-00002-of-00003.parquet"
    assert rows[-2:] == [(f"{train}/2", 0, "train"), (f"{train}/3", 1, "train")]
    assert (len(rows), collection.count("held_out"), collection.num_read) == (14, 2, 4)
    assert collection.remarks == [
        "1 shards of a test split are left alone, as data/test-00000-of-00001.parquet",
        "ignored 1 files that are no shards by their names (1 .md), as README.md",
    ]
    images = open_set(collection, root)
    assert images.names[0] == "data/train-00000-of-00003.parquet/0"
    assert [images[at][1] for at in range(4)] == [0, 1, 0, 1]
    assert images.is_present(0)


def test_a_folder_may_have_the_name_of_the_split(tmp_path: Path) -> None:
    write_parquet(tmp_path / "default/train/0000.parquet", [jpeg(0)], [0])
    write_parquet(tmp_path / "default/validation/0000.parquet", [jpeg(1)], [0])
    assert [row.split for row in collect(tmp_path).rows] == ["train", "held_out"]


def test_classes_without_an_image_held_out_are_said(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [jpeg(0), jpeg(1)], ["a", "b"])
    write_parquet(tmp_path / "val.parquet", [jpeg(2)], ["b"])
    assert "1 of 2 classes have no image held out, as a" in collect(tmp_path).warnings


def test_without_files_of_validation_some_of_each_class_are_held_out(tmp_path: Path) -> None:
    images = [jpeg(index) for index in range(16)]
    for name in ("a.parquet", "train.parquet"):
        root = tmp_path / name.partition(".")[0]
        write_parquet(root / name, images, [index % 2 for index in range(16)])
        rows = [row for row in collect(root).rows if row.split == "held_out"]
        assert sorted(row.label for row in rows) == [0, 0, 1, 1]
        other = [row.path for row in collect(root, seed=1).rows if row.split == "held_out"]
        assert other != [row.path for row in rows]


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (["b", "a", "b", "a"], ["a", "b"], [1, 0, 1, 0]),
        ([10, 9, 10, 9], ["9", "10"], [1, 0, 1, 0]),
    ],
)
def test_labels_without_names_are_names(
    tmp_path: Path, labels: list[Any], names: list[str], expected: list[int]
) -> None:
    write_parquet(tmp_path / "a.parquet", [jpeg(index) for index in range(4)], labels)
    collection = collect(tmp_path)
    assert collection.class_names == names
    assert [row.label for row in collection.rows] == expected


def test_names_come_from_a_file_where_one_is_given(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("owl\ntench, Tinca tinca\n")
    write_parquet(tmp_path / "a.parquet", [jpeg(i) for i in range(4)], [1, 0, 1, 0])
    write_parquet(tmp_path / "b.parquet", [jpeg(i) for i in range(4)], [1, 0, 1, 0])
    collection = collect(tmp_path, class_names="names.txt")
    assert collection.class_names == ["owl", "tench, Tinca tinca"]
    assert [row.label for row in collection.rows] == [1, 0] * 4
    (tmp_path / "names.txt").write_text("owl\n\n")
    with pytest.raises(ValueError, match=r"data.class_names: \S+ has no class name in line 2"):
        collect(tmp_path, class_names="names.txt")
    (tmp_path / "names.txt").write_text("owl\nowl")
    assert collect(tmp_path, class_names="names.txt").class_names == ["owl", "owl"]
    write_parquet(tmp_path / "b.parquet", [jpeg(0), jpeg(1)], ["owl", "owl"])
    with pytest.raises(ValueError, match="two classes are called 'owl', and labels are names here"):
        collect(tmp_path, class_names="names.txt")
    with pytest.raises(ValueError, match=r"data.class_names: \S+gone cannot be read"):
        collect(tmp_path, class_names="gone")


def test_columns_may_have_other_names_and_images_be_plain_bytes(tmp_path: Path) -> None:
    table = pa.table({"img": [jpeg(0), jpeg(1)], "fine": pa.array(["a", "a"]).dictionary_encode()})
    pq.write_table(table, tmp_path / "a.parquet")
    collection = collect(tmp_path, image_column="img", label_column="fine")
    assert (collection.class_names, len(collection.rows)) == (["a"], 2)


# What cannot be used


def test_rows_that_cannot_be_used_are_counted_and_named(tmp_path: Path) -> None:
    images = [jpeg(0), b"", None, {"bytes": None, "path": "x.jpg"}, b"hello", jpeg(1), jpeg(2)]
    images += [jpeg(3)[:500], jpeg(4), jpeg(5)]
    labels = [0, 0, 0, 0, 0, None, -1, 0, 2, 0]
    write_parquet(tmp_path / "a.parquet", images, labels, names=["a", "b"])
    write_parquet(tmp_path / "b.parquet", [jpeg(8), jpeg(9)], [1, 1], names=["a", "b"])
    with pytest.raises(ValueError, match=r"8 of 12 images in .* cannot be used, data.max_unreadab"):
        collect(tmp_path, max_unreadable=7)
    collection = collect(tmp_path, max_unreadable=8)
    found = {path.removeprefix("a.parquet/"): why for path, why in collection.unreadable.items()}
    assert [row.path for row in collection.rows if row.label == 0] == ["a.parquet/0", "a.parquet/9"]
    assert found.pop("4").startswith("text, expected ")
    assert found.pop("7")  # Pillow says it in one of several ways
    assert found == {
        "1": "the file is empty",
        "2": "it has no bytes in the column 'image'",
        "3": "it has no bytes in the column 'image'",
        "5": "it has no label",
        "6": "its label is '-1', expected a number from 0 to 1",
        "8": "its label is '2', expected a number from 0 to 1",
    }
    for row in collection.rows:
        assert row.place is not None
        content = read_image(tmp_path, row.place, row.size)
        assert hashlib.sha256(content).digest() == row.sha256


def test_classes_without_an_image_to_train_on_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [jpeg(0), jpeg(1)], [0, 0], names=["a", "b", "c"])
    with pytest.raises(ValueError, match=r"^2 of 3 classes have no image to train on in .*, as b$"):
        collect(tmp_path)


def test_too_many_pixels_are_refused_until_they_are_allowed(tmp_path: Path) -> None:
    root, kept = tmp_path / "data", tmp_path / "kept"
    write_parquet(root / "a.parquet", [jpeg(0), jpeg(1)], [0, 0])
    with pytest.raises(ValueError, match=r"2 of 2 images in .*\n  a.parquet/0: 40 x 40 pixels"):
        collect(root, max_pixels=1599, kept=kept)
    assert len(collect(root, max_pixels=1640, kept=kept).rows) == 2


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"no Parquet file at all"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(damage)
    with pytest.raises(
        ValueError, match=rf"^{tmp_path}/a.parquet is no Parquet file, or damaged: "
    ):
        collect(tmp_path)


def test_a_file_with_a_damaged_page_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [jpeg(0), jpeg(1)], [0, 0], compression="zstd")
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[20:40] = bytes(20)
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{tmp_path}/a.parquet"):
        collect(tmp_path, max_unreadable=2)


def test_a_changed_byte_is_noticed_where_pages_have_checksums(tmp_path: Path) -> None:
    images = [jpeg(index) for index in range(4)]
    write_parquet(
        tmp_path / "a.parquet", images, [0] * 4, compression="none", write_page_checksum=True
    )
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[content.index(images[1]) + len(images[1]) // 2] ^= 1
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"^{tmp_path}/a.parquet is no Parquet file, or damaged: "
    ):
        collect(tmp_path, max_unreadable=4)


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_whatever_byte_is_damaged_no_other_image_is_read_than_was_listed(
    tmp_path: Path, compression: str
) -> None:
    images = [jpeg(index, 24) for index in range(6)]
    file = tmp_path / "a.parquet"
    write_parquet(file, images, [0] * 6, compression=compression, row_group_size=3)
    content, rng = file.read_bytes(), np.random.default_rng(0)
    complaints: list[str] = []
    sound = list(collect(tmp_path).rows)
    for at in rng.choice(len(content), 60, replace=False):
        damaged = bytearray(content)
        damaged[at] ^= 1 << rng.integers(8)
        file.write_bytes(damaged)
        for row, image in zip(sound, images, strict=True):
            assert row.place is not None
            with suppress(ValueError):
                found = read_image(tmp_path, row.place, row.size)
                assert (found == image) == (hashlib.sha256(found).digest() == row.sha256)
        try:
            rows = list(collect(tmp_path, max_unreadable=6).rows)
        except ValueError as error:
            complaints.append(str(error))
            continue
        for row in rows:
            assert row.place is not None
            found = read_image(tmp_path, row.place, row.size)
            assert hashlib.sha256(found).digest() == row.sha256
    assert all(str(tmp_path) in complaint for complaint in complaints)


def test_a_file_cut_off_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [jpeg(0), jpeg(1)], [0, 0])
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content[:-9])
    with pytest.raises(ValueError, match=rf"^{tmp_path}/a.parquet is no Parquet file, or damaged"):
        collect(tmp_path)


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"img": [b"x"], "label": [0]}, r"it has no column 'image' \(data.image_column\), but img"),
        ({"image": [b"x"]}, r"it has no column 'label' \(data.label_column\), but image"),
        ({"image": ["x"], "label": [0]}, "its column 'image' is of the type string, expected"),
        ({"image": [{"path": "x"}], "label": [0]}, "its column 'image' is of the type struct<path"),
        ({"image": [b"x"], "label": [0.5]}, "its column 'label' is of the type double, expected"),
        ({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}, "holds no image"),
    ],
)
def test_a_file_without_what_is_expected_is_named(
    tmp_path: Path, table: dict[str, Any], complaint: str
) -> None:
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=rf"^{tmp_path}/a.parquet:? {complaint}"):
        collect(tmp_path)


def test_metadata_that_are_not_the_hubs_are_named(tmp_path: Path) -> None:
    table = pa.table({"image": [b"x"], "label": [0]})
    for metadata in ("{", "[]", '{"info": {"features": {}}}'):
        pq.write_table(
            table.replace_schema_metadata({"huggingface": metadata}), tmp_path / "a.parquet"
        )
        with pytest.raises(
            ValueError, match=r"a.parquet: its metadata `huggingface` do not descri"
        ):
            collect(tmp_path)


def test_files_with_other_class_names_are_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [jpeg(0), jpeg(1)], [0, 1], names=["a", "b"])
    write_parquet(tmp_path / "b.parquet", [jpeg(2), jpeg(3)], [0, 1], names=["b", "a"])
    expected = (
        r"b.parquet has 2 class names \('b', ...\), expected 2 class names \('a', ...\) as in a"
    )
    with pytest.raises(ValueError, match=expected):
        collect(tmp_path)


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        ([], "holds no .parquet files"),
        (["a.tar"], "holds no .parquet files, but a.tar"),
        (
            ["train-0.parquet", "b.parquet"],
            r"holds train-0.parquet, whose name has a split, and b.p",
        ),
        (["train-val-0.parquet"], r"train-val-0.parquet: its name has two splits, expected one of"),
        (["val-0.parquet"], "holds val-0.parquet, but no shards of training"),
        (["test-0.parquet"], "holds test-0.parquet, but no shards of training"),
    ],
)
def test_a_folder_of_other_files_is_refused(
    tmp_path: Path, names: list[str], complaint: str
) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=rf"^data.path: {tmp_path}\W{complaint}"):
        collect(tmp_path)


@pytest.mark.parametrize(
    "make",
    [os.mkfifo, lambda path: path.symlink_to("nowhere"), lambda path: path.symlink_to("/dev/zero")],
    ids=["pipe", "link to nothing", "device"],
)
def test_what_is_no_file_is_named_and_never_waited_for(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "train-0.parquet")
    with pytest.raises(ValueError, match=r"^data.path: \S+/train-0.parquet is no file, but a pipe"):
        collect(tmp_path)


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^data.path: \S+gone does not exist, expected a folder"):
        collect(tmp_path / "gone")


# Afterwards


def test_later_starts_read_new_and_changed_files_alone(tmp_path: Path) -> None:
    root, kept = tmp_path / "data", tmp_path / "kept"
    for name in "abc":
        write_parquet(root / f"{name}.parquet", [jpeg(0), jpeg(1)], [0, 0])
    time.sleep(0.1)  # files just written are read again, as they may still change
    first = collect(root, kept=kept)
    again = collect(root, kept=kept)
    assert (first.num_read, again.num_read, again.num_known) == (3, 0, 3)
    assert again.rows == first.rows == collect(root).rows
    write_parquet(root / "b.parquet", [jpeg(2), jpeg(3)], [0, 0])
    (root / "c.parquet").rename(root / "d.parquet")
    changed = collect(root, kept=kept)
    assert (changed.num_read, changed.num_known) == (2, 1)
    assert changed.rows == collect(root).rows
    assert len(list(kept.rglob("*.parquet"))) == 3


def test_a_start_that_ended_early_goes_on_where_it_was(tmp_path: Path) -> None:
    root, kept = tmp_path / "data", tmp_path / "kept"
    for name in "abc":
        write_parquet(root / f"{name}.parquet", [jpeg(0), jpeg(1)], [0, 0])
    content = (root / "c.parquet").read_bytes()
    (root / "c.parquet").write_bytes(content[:99])
    time.sleep(0.1)
    with pytest.raises(ValueError, match=r"c.parquet is no Parquet file, or damaged"):
        collect(root, kept=kept)
    (root / "c.parquet").write_bytes(content)
    collection = collect(root, kept=kept)
    assert (collection.num_read, collection.num_known) == (1, 2)


def test_what_is_kept_is_read_anew_where_it_is_damaged_or_of_other_columns(tmp_path: Path) -> None:
    root, kept = tmp_path / "data", tmp_path / "kept"
    table = pa.table({"image": [jpeg(0), jpeg(1)], "label": [0, 0], "other": ["x", "y"]})
    root.mkdir()
    pq.write_table(table, root / "a.parquet")
    time.sleep(0.1)
    assert collect(root, kept=kept).num_read == 1
    with pytest.raises(ValueError, match=r"no image in .* can be held out, as each class has one"):
        collect(root, kept=kept, label_column="other")
    assert collect(root, kept=kept).num_read == 1
    (file,) = kept.rglob("*.parquet")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert collect(root, kept=kept).num_read == 1
    assert collect(root, kept=kept).num_read == 0


def test_an_image_that_is_not_as_it_was_is_named(tmp_path: Path) -> None:
    for compression in ("none", "snappy", "zstd"):
        root = tmp_path / compression / "data"
        write_parquet(
            root / "a.parquet", [jpeg(0, 200), jpeg(1, 200)], [0, 0], compression=compression
        )
        images = open_set(collect(root), root)
        assert images[0][0].shape == (3, SIZE, SIZE)
        content = (root / "a.parquet").read_bytes()
        middle = len(content) // 4
        (root / "a.parquet").write_bytes(content[:middle] + bytes(80) + content[middle + 80 :])
        other = ImageSet(root.parent / "manifest.parquet", "train", SIZE, root=root.parent / "b")
        (root.parent / "b").mkdir()
        with pytest.raises(ValueError, match=r"a.parquet is gone since prepare ran, or the data f"):
            other[0]
        (root / "a.parquet").rename(root.parent / "b/a.parquet")
        (root.parent / "b/a.parquet").write_bytes(bytes(len(content)))
        with pytest.raises(ValueError, match=r"a.parquet\S* has other content than when prepare r"):
            other[0]
        (root.parent / "b/a.parquet").write_bytes(content[:10])
        with pytest.raises(
            ValueError, match=r"a.parquet\S* (has other content|is shorter) than wh"
        ):
            other[0]


def test_the_manifest_does_not_depend_on_where_the_folder_lies(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_parquet(root / "a.parquet", [jpeg(0), jpeg(1)], [0, 0])
    first, manifest = collect(root), tmp_path / "manifest.parquet"
    train = open_set(first, root)[0][0]
    content = manifest.read_bytes()
    root.rename(tmp_path / "moved")
    moved = open_set(collect(tmp_path / "moved"), tmp_path / "moved")
    assert manifest.read_bytes() == content
    assert torch.equal(moved[0][0], train)


# Captions


@pytest.mark.parametrize("several", [False, True])
def test_captions_are_a_column_of_text_or_of_lists(tmp_path: Path, several: bool) -> None:
    images = [jpeg(index) for index in range(20)]
    texts = [f"image {index}" for index in range(20)]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.array([{"bytes": image, "path": None} for image in images], struct)
    column = [[text, f"{text} again", " "] for text in texts] if several else [*texts[:19], None]
    table = pa.table({"image": rows, "text": pa.array(column), "url": texts, "width": range(20)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    collection = collect(tmp_path, label_column=None, caption_column="text", max_unreadable=1)
    expected = [(text, f"{text} again") if several else (text,) for text in texts]
    assert [row.captions for row in collection.rows] == expected[: 20 if several else 19]
    unreadable = {} if several else {"a.parquet/19": "it has no caption"}
    assert collection.unreadable == unreadable
    assert collection.remarks[0] == "not used of what there is beside images: url, width"
    empty = ["20 images have an empty caption, as a.parquet/0"]
    assert collection.warnings == (empty if several else [])
    for image, row in zip(images, collection.rows, strict=False):
        assert row.place is not None
        assert read_image(tmp_path, row.place, row.size) == image
    with pytest.raises(ValueError, match=r"'width' is of the type int64, expected text, or lists"):
        collect(tmp_path, label_column=None, caption_column="width")
    with pytest.raises(ValueError, match=r"no column 'caption' \(data.caption_column\), but image"):
        collect(tmp_path, label_column=None, caption_column="caption")
