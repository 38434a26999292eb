"""Images in tar archives are listed once, and then read one by one from where they lie."""

import gzip
import hashlib
import io
import json
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sample_shards import jpeg, write_tar

from mar.data.dataset import ImageSet
from mar.data.manifest import Manifest, write_manifest
from mar.data.shards import read_image
from mar.sources.source import Collection, Surroundings
from mar.sources.webdataset import WebDatasetData


def collect(
    root: Path, *, workers: int = 0, kept: Path | None = None, **changes: Any
) -> Collection:
    section = {
        "source": "webdataset",
        "path": str(root),
        "image_size": 16,
        "label": "cls",
        "caption": None,
        "class_names": None,
        "held_out_fraction": 0.25,
        "max_unreadable": 0,
        "seed": 0,
    }
    config = WebDatasetData.model_validate(section | changes)
    return config.collect(Surroundings(Path(), workers, 10**6, kept))


def samples(first: int, num: int, label: Callable[[int], str] = str) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for index in range(first, first + num):
        files[f"x/{index:04d}.jpg"] = jpeg(index)
        files[f"x/{index:04d}.cls"] = label(index % 2).encode()
    return files


# Samples, splits and labels


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_are_read_from_where_they_lie(tmp_path: Path, workers: int) -> None:
    for shard in range(3):
        write_tar(tmp_path / f"imagenet1k-train-000{shard}.tar", samples(4 * shard, 4))
    write_tar(tmp_path / "imagenet1k-validation-00.tar", samples(90, 2))
    write_tar(tmp_path / "imagenet1k-test-00.tar", samples(95, 2))
    collection = collect(tmp_path, workers=workers)
    rows = list(collection.rows)
    assert [row.split for row in rows] == ["train"] * 12 + ["held_out"] * 2
    assert rows[5].path == "imagenet1k-train-0001.tar/x/0005.jpg"
    assert [row.label for row in rows] == [0, 1] * 7
    assert collection.class_names == ["0", "1"]
    for index, row in zip([*range(12), 90, 91], rows, strict=True):
        assert row.place is not None
        assert read_image(tmp_path, row.place, row.size) == jpeg(index)
        assert row.sha256 == hashlib.sha256(jpeg(index)).digest()


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_in_all_formats_of_tar_are_read(tmp_path: Path, kind: int) -> None:
    names = [f"{'folder/' * 12}{'n' * 60}{index}" for index in range(3)]
    with tarfile.open(tmp_path / "a.tar", "w", format=kind) as archive:
        for index, name in enumerate(names):
            for ending, content in (("jpg", jpeg(index)), ("cls", b"7")):
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    rows = list(collect(tmp_path).rows)
    assert [row.path for row in rows] == [f"a.tar/{name}.jpg" for name in names]
    for index, row in enumerate(rows):
        assert row.place is not None
        assert read_image(tmp_path, row.place, row.size) == jpeg(index)


def test_labels_may_be_text(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", samples(0, 8, lambda label: ["dog\n", "cat\n"][label]))
    collection = collect(tmp_path)
    assert collection.class_names == ["cat", "dog"]
    assert [row.label for row in collection.rows] == [1, 0] * 4


@pytest.mark.parametrize(
    ("label", "ending", "content"),
    [
        ("txt", "txt", "%d"),
        ("json.label", "json", '{"label": %d, "width": 3}'),
        ("json.of.class", "json", '{"of": {"class": "%d"}}'),
        ("label.cls", "label.cls", "%d"),
    ],
)
def test_labels_may_be_in_other_files(
    tmp_path: Path, label: str, ending: str, content: str
) -> None:
    files: dict[str, bytes] = {}
    for index in range(4):
        files[f"{index}.{ending}"] = (content % (index % 2)).encode()
        files[f"{index}.JPG"] = jpeg(index)
        files[f"{index}.seg.png"] = b"a mask, which is not the image"
    write_tar(tmp_path / "a.tar", files)
    collection = collect(tmp_path, label=label)
    assert [row.label for row in collection.rows] == [0, 1, 0, 1]
    assert collection.rows[0].path == "a.tar/0.JPG"


def test_numbers_are_those_of_a_file_with_names(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", samples(0, 4))
    (tmp_path / "classnames.txt").write_text("tench, Tinca tinca\ngoldfish\n")
    collection = collect(tmp_path, class_names="classnames.txt")
    assert collection.class_names == ["tench, Tinca tinca", "goldfish"]
    write_tar(tmp_path / "b.tar", samples(10, 4, lambda label: ["goldfish", "dog"][label]))
    with pytest.raises(ValueError, match="its label is 'dog', expected one of the 2 class names"):
        collect(tmp_path, class_names="classnames.txt")


# What cannot be used


def faults(root: Path, files: list[tuple[str, bytes]], **changes: Any) -> dict[str, str]:
    write_tar(root / "a.tar", [*files, *samples(100, 4).items()])
    return collect(root, max_unreadable=9, **changes).unreadable


def test_samples_that_cannot_be_used_are_counted_and_named(tmp_path: Path) -> None:
    files = [
        ("._a.jpg", b"what macOS adds"),
        ("a.jpg", jpeg(0)),
        ("b.jpg", jpeg(1)),
        ("b.json", b"{}"),
        ("c.cls", b"0"),
        ("d.cls", b"0"),
        ("d.jpg", jpeg(2)),
        ("d.webp", jpeg(2)),
        ("e.cls", b"1"),
        ("e.jpg", b""),
        ("f.jpg", jpeg(3)),
        ("f.cls", b"-1"),
        ("g.jpg", jpeg(4)),
        ("g.cls", b"0"),
        ("g.cls", b"1"),
        ("h.jpg", jpeg(4)),
        ("h.cls", b"\xff"),
    ]
    found = faults(tmp_path, files)
    assert found.pop("a.tar/h.jpg").startswith("its label in cls cannot be read: 'utf-8' codec")
    assert found == {
        "a.tar/a.jpg": "it has no cls, but jpg",
        "a.tar/b.jpg": "it has no cls, but jpg, json",
        "a.tar/c.cls": "it has no image, expected one: its files are cls",
        "a.tar/d.jpg": "it has 2 images, expected one: its files are cls, jpg, webp",
        "a.tar/e.jpg": "the file is empty",
        "a.tar/f.jpg": "its label is '-1', expected a number from 0",
        "a.tar/g.jpg": "it has two files cls",
    }
    with pytest.raises(ValueError, match=r"8 of 12 images in .* cannot be used, data.max_unreadab"):
        collect(tmp_path, max_unreadable=7)


def test_doubled_and_scattered_samples_are_named(tmp_path: Path) -> None:
    files = [(name, content) for name, content in samples(0, 2).items()]
    scattered = [("y.jpg", jpeg(5)), ("z.jpg", jpeg(6)), ("y.cls", b"0"), ("z.cls", b"0")]
    found = faults(tmp_path, [*files, *files[:2], *scattered, *files[:2]])
    assert len(found) == 6
    doubled = [path for path in found if path.startswith("a.tar/x/0000.jpg at byte ")]
    assert [found[path] for path in doubled] == [
        "two samples have the key x/0000, or the files of one do not stand one after another"
    ] * 2
    assert {"a.tar/y.jpg", "a.tar/z.jpg"} < set(found)


def test_labels_in_json_that_are_none_are_named(tmp_path: Path) -> None:
    labels = [b"{", b"[1]", b'{"label": null}', b'{"label": 0.5}', b'{"label": true}']
    files = [("ok0.jpg", jpeg(0)), ("ok0.json", b'{"label": 1}')]
    files += [("ok1.jpg", jpeg(1)), ("ok1.json", b'{"label": 1}')]
    for index, label in enumerate(labels):
        files += [(f"{index}.jpg", jpeg(index)), (f"{index}.json", label)]
    write_tar(tmp_path / "a.tar", files)
    found = list(collect(tmp_path, label="json.label", max_unreadable=5).unreadable.values())
    assert found[0].startswith("its label in json cannot be read: Expecting property name")
    assert found[1:3] == ["it has no json.label, but jpg, json"] * 2
    assert (
        found[3] == "its label in json cannot be read: it is 0.5, expected a whole number or text"
    )
    assert found[4].endswith("it is True, expected a whole number or text")


def test_links_are_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, content in samples(0, 2).items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("l.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "x/0000.jpg"
        archive.addfile(link)
    with pytest.raises(
        ValueError, match=r"a.tar/l.jpg: l.jpg is no plain file, but a link, a devi"
    ):
        collect(tmp_path)


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def without_end(content: bytes) -> bytes:
    return content.rstrip(b"\0")[:-1].ljust(len(content.rstrip(b"\0")) // 512 * 512 + 512, b"x")


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (
            cut,
            r"(is no tar archive, or damaged: unexpected end of data|: it is cut off at byte \d+)",
        ),
        (
            lambda content: content[:1024],
            r"(is no tar archive, or damaged|: it is cut off at byte)",
        ),
        (
            without_end,
            r": (it is cut off at byte \d+, where|behind byte \d+, where the archive en)",
        ),
        (
            lambda content: content + content,
            r": behind byte \d+, where the archive ends, are bytes",
        ),
        (gzip.compress, ": it is compressed by gzip, expected a plain tar archive"),
        (lambda _: b"", " is no tar archive, or damaged: empty file"),
        (lambda _: b"not a tar" * 100, " is no tar archive, or damaged: "),
        (lambda _: bytes(10240), " holds no images"),
        (
            lambda content: content[:2048] + b"y" + content[2049:],
            ": behind byte 2048, where the ar",
        ),
    ],
)
def test_a_damaged_archive_is_named(
    tmp_path: Path, damage: Callable[[bytes], bytes], complaint: str
) -> None:
    files = {"a.cls": b"0", "a.png": b"x" * 100, **samples(0, 4)}  # a header at byte 2048
    write_tar(tmp_path / "a.tar", files)
    content = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(damage(content))
    with pytest.raises(ValueError, match=rf"^{tmp_path}/a.tar{complaint}"):
        collect(tmp_path, max_unreadable=9)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar.zst"])
def test_compressed_archives_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(
        ValueError, match=rf"^data.path: {tmp_path}/{name} is compressed, so that im"
    ):
        collect(tmp_path)


# Afterwards


def test_later_starts_read_new_and_changed_archives_alone(tmp_path: Path) -> None:
    root, kept = tmp_path / "data", tmp_path / "kept"
    for name in "abc":
        write_tar(root / f"{name}.tar", samples(0, 4))
    time.sleep(0.1)  # files just written are read again, as they may still change
    first = collect(root, kept=kept)
    again = collect(root, kept=kept)
    assert (first.num_read, again.num_read, again.num_known) == (3, 0, 3)
    assert again.rows == first.rows
    write_tar(root / "b.tar", samples(10, 4))
    (root / "c.tar").unlink()
    changed = collect(root, kept=kept)
    assert (changed.num_read, changed.num_known) == (1, 1)
    assert changed.rows == collect(root).rows != first.rows


def test_the_images_are_the_same_tensors_wherever_the_folder_lies(tmp_path: Path) -> None:
    root, manifest = tmp_path / "data", tmp_path / "manifest.parquet"
    write_tar(root / "a.tar", samples(0, 8))

    def open_set(root: Path) -> ImageSet:
        collection = collect(root)
        write_manifest(manifest, collection.class_names, collection.rows)
        return ImageSet(manifest, "train", 16, root=root)

    images = open_set(root)
    before = (images.names, images.stack([0, 3, 5]))
    content = manifest.read_bytes()
    moved = open_set(root.rename(tmp_path / "moved"))
    assert manifest.read_bytes() == content
    assert moved.names == before[0]
    assert torch.equal(moved.stack([0, 3, 5]), before[1])
    assert json.loads(json.dumps(moved.class_names)) == ["0", "1"]


# Captions


@pytest.mark.parametrize("caption", ["txt", "json.caption"])
def test_captions_take_the_place_of_labels(tmp_path: Path, caption: str) -> None:
    files: dict[str, bytes] = {}
    for index in range(8):
        text = f"image  {index // 2}\n"
        files[f"{index}.jpg"] = jpeg(index)
        files[f"{index}.txt"] = text.encode()
        files[f"{index}.json"] = json.dumps({"caption": [text, ""], "url": "x"}).encode()
    write_tar(tmp_path / "00000.tar", files)
    collection = collect(tmp_path, label=None, caption=caption, kept=tmp_path / "kept")
    assert [row.captions for row in collection.rows] == [(f"image {n // 2}",) for n in range(8)]
    assert collection.class_names == ["image"]
    assert collection.count("held_out") == 2
    other = "json" if caption == "txt" else "txt"
    assert collection.remarks[0] == f"not used of what there is beside images: {other}"
    assert collection.remarks[1].startswith("8 captions of 8 images; half have up to 2 words")
    doubled = "8 images share their caption with another, 2 of them 'image 0'"
    empty = "8 images have an empty caption, as 00000.tar/0.jpg"
    assert collection.warnings == ([doubled] if caption == "txt" else [empty, doubled])
    for index, row in enumerate(collection.rows):
        assert row.place is not None
        assert read_image(tmp_path, row.place, row.size) == jpeg(index)
    path = tmp_path / "manifest.parquet"
    write_manifest(path, collection.class_names, collection.rows)
    assert Manifest(path).captions() == [[f"image {n // 2}"] for n in range(8)]


def test_samples_without_a_caption_are_left_out_and_named(tmp_path: Path) -> None:
    files: list[tuple[str, bytes]] = []
    for index, text in enumerate([b"a cat", b" \n", b"\xff", None, b"a dog", b"a bird"]):
        files.append((f"{index}.jpg", jpeg(index)))
        ending = "TXT" if index == 4 else "txt"
        files += [] if text is None else [(f"{index}.{ending}", text)]
    files.append(("6.txt", b"of no image"))
    write_tar(tmp_path / "a.tar", files)
    with pytest.raises(ValueError, match="4 of 7 images"):
        collect(tmp_path, label=None, caption="txt")
    collection = collect(tmp_path, label=None, caption="txt", max_unreadable=4)
    assert [row.captions for row in collection.rows] == [("a cat",), ("a dog",), ("a bird",)]
    assert list(collection.unreadable) == [f"a.tar/{n}.jpg" for n in (1, 2, 3)] + ["a.tar/6.txt"]
    reasons = list(collection.unreadable.values())
    assert reasons[0] == "it has no caption"
    assert reasons[1].startswith("its caption in txt cannot be read: ")
    assert reasons[2] == "it has no txt, but jpg"
    assert reasons[3].startswith("it has no image")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"caption": "txt"}, "one of label and caption must be null"),
        ({"label": None}, "one of label and caption must be null"),
        ({"label": None, "caption": "txt", "class_names": "names.txt"}, "class_names must be null"),
    ],
)
def test_either_labels_or_captions_are_read(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        collect(tmp_path, **changes)
