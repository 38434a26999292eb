"""Images come with their captions from four layouts, and what does not fit is said."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mar.data.manifest import Manifest, write_manifest
from mar.sources.captioned_folder import CaptionedFolderData
from mar.sources.source import Collection, Surroundings


def make(root: Path, *paths: str) -> None:
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(root / path)


def collect(root: Path, captions: dict[str, str], **changes: Any) -> Collection:
    section = {
        "source": "captioned_folder",
        "path": str(root),
        "image_size": 4,
        "captions": captions,
        "held_out_fraction": 0.5,
        "max_unreadable": 0,
        "seed": 0,
    }
    config = CaptionedFolderData.model_validate(section | changes)
    return config.collect(Surroundings(Path(), workers=0, max_pixels=100))


def found(collection: Collection) -> dict[str, tuple[str, ...] | None]:
    return {row.path: row.captions for row in collection.rows}


METADATA = {"kind": "metadata", "column": "text"}


def test_metadata_of_three_formats_lie_in_the_folder_of_images_or_around_it(tmp_path: Path) -> None:
    make(tmp_path, "a/1.png", "b/in/2.png", "c/3.png", "c/4.png")
    rows = [{"file_name": "1.png", "text": "a  cat,\n\tasleep"}]
    (tmp_path / "a/metadata.JSONL").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (tmp_path / "b/Metadata.CSV").write_text('file_name,text\nin/2.png,"a dog, \u732b"\n')
    table = pa.table({"file_name": ["3.png", "./4.png"], "text": [["one", "two"], ["three"]]})
    pq.write_table(table, tmp_path / "c/metadata.Parquet")
    assert found(collect(tmp_path, METADATA)) == {
        "a/1.png": ("a cat, asleep",),
        "b/in/2.png": ("a dog, \u732b",),
        "c/3.png": ("one", "two"),
        "c/4.png": ("three",),
    }


def test_text_and_json_files_lie_beside_their_images(tmp_path: Path) -> None:
    make(tmp_path, "a.x.jpg", "in/b.PNG")
    (tmp_path / "a.x.txt").write_text("\ufeffa cat\n")
    (tmp_path / "in/b.txt").write_text("a dog")
    expected = {"a.x.jpg": ("a cat",), "in/b.PNG": ("a dog",)}
    assert found(collect(tmp_path, {"kind": "text_files"})) == expected
    (tmp_path / "a.x.json").write_text('{"caption": "a cat", "score": 1}')
    (tmp_path / "in/b.json").write_text('{"caption": ["a dog"]}')
    assert found(collect(tmp_path, {"kind": "json_files", "key": "caption"})) == expected
    with pytest.raises(ValueError, match=r"a\.x\.json has no key 'text' \(data\.captions\.key\)"):
        collect(tmp_path, {"kind": "json_files", "key": "text"})


def test_coco_has_several_captions_an_image_in_whatever_folder(tmp_path: Path) -> None:
    make(tmp_path, "train2014/1.png", "train2014/2.png")
    (tmp_path / "captions.json").write_text(
        json.dumps(
            {
                "images": [
                    {"id": 7, "file_name": "1.png"},
                    {"id": 8, "file_name": "2.png"},
                    {"id": 9, "file_name": "gone.png"},
                ],
                "annotations": [
                    {"image_id": 8, "caption": "a dog"},
                    {"image_id": 7, "caption": "a cat"},
                    {"image_id": 7, "caption": "a small cat "},
                    {"image_id": 9, "caption": "nothing"},
                ],
            }
        )
    )
    collection = collect(tmp_path, {"kind": "coco", "file": "captions.json"})
    assert found(collection) == {
        "train2014/1.png": ("a cat", "a small cat"),
        "train2014/2.png": ("a dog",),
    }
    assert collection.warnings == ["1 captions belong to no image of the folder, as gone.png"]


def test_folders_train_and_val_are_the_splits_and_else_images_are_drawn(tmp_path: Path) -> None:
    paths = [f"{split}/{name}.png" for split in ("train", "val") for name in "abc"]
    make(tmp_path, *paths)
    for path in paths:
        (tmp_path / path).with_suffix(".txt").write_text(path)
    collection = collect(tmp_path, {"kind": "text_files"})
    assert [row.split for row in collection.rows] == ["train"] * 3 + ["held_out"] * 3
    drawn = collect(tmp_path / "train", {"kind": "text_files"})
    assert sorted(row.split for row in drawn.rows) == ["held_out", "held_out", "train"]


def test_what_is_missing_empty_or_doubled_is_said(tmp_path: Path) -> None:
    make(tmp_path, *(f"{number}.png" for number in range(6)))
    texts = {"0": "a cat", "1": "a cat", "2": " ", "4": "a red bird on a tree", "5": "x", "9": "y"}
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
    with pytest.raises(ValueError, match="2 of 6 images in") as refused:
        collect(tmp_path, {"kind": "text_files"})
    assert "2.png: it has no caption\n  3.png: it has no caption" in str(refused.value)
    assert str(refused.value).endswith("\n1 captions belong to no image of the folder, as 9.txt")
    collection = collect(tmp_path, {"kind": "text_files"}, max_unreadable=2)
    assert set(collection.unreadable) == {"2.png", "3.png"}
    assert collection.warnings == [
        "1 captions belong to no image of the folder, as 9.txt",
        "1 images have an empty caption, as 2.png",
        "2 images share their caption with another, 2 of them 'a cat'",
    ]
    assert collection.remarks[1] == (
        "4 captions of 4 images; half have up to 2 words, 95 % up to 2, the longest 6, as\n"
        "  'a cat'\n  'a red bird on a tree'\n  'x'"
    )


@pytest.mark.parametrize("name", ["a.txt", "metadata.jsonl", "metadata.parquet"])
def test_a_pipe_is_never_waited_for(tmp_path: Path, name: str) -> None:
    make(tmp_path, "a.png", "b.png")
    os.mkfifo(tmp_path / name)
    captions = METADATA if name.startswith("metadata") else {"kind": "text_files"}
    with pytest.raises(ValueError, match=rf"{name} cannot be read: not a file, but a pipe"):
        collect(tmp_path, captions)


@pytest.mark.parametrize(
    ("files", "captions", "complaint"),
    [
        ({"metadata.json1": "{}"}, METADATA, r"metadata\.parquet; did you mean metadata\.json1\?"),
        ({"metadata.jsonl": '{"file_name": "a.png", "caption": "x"}'}, METADATA,
         r"line 1 has no 'text' \(data\.captions\.column\), but file_name, caption"),
        ({"metadata.jsonl": "{}"}, METADATA, "line 1 has no 'file_name'"),
        ({"metadata.jsonl": "\n["}, METADATA, "line 2 is not JSON"),
        ({"metadata.csv": "file_name,text\na.png,a cat, asleep"}, METADATA,
         "line 2 has another number of fields"),
        ({"metadata.jsonl": '{"file_name": "a.png", "text": 3}'}, METADATA, "its caption is 3"),
        ({"metadata.parquet": "x"}, METADATA, "is no Parquet file, or damaged"),
        ({}, {"kind": "text_files"}, r"holds no \.txt files with captions"),
        ({"a.txt": "\udce9"}, {"kind": "text_files"}, r"a\.txt cannot be read as UTF-8 text"),
        ({}, {"kind": "coco", "file": "c.json"}, r"data\.captions\.file: .*c\.json does not exist"),
        ({"c.json": "{}"}, {"kind": "coco", "file": "c.json"}, "is not a file of COCO captions"),
    ],
)  # fmt: skip
def test_another_layout_is_refused(
    tmp_path: Path, files: dict[str, str], captions: dict[str, str], complaint: str
) -> None:
    make(tmp_path, "a.png", "b.png")
    for name, content in files.items():
        (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=complaint):
        collect(tmp_path, captions)


def test_two_images_of_one_name_cannot_share_a_caption(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "a.jpg")
    (tmp_path / "a.txt").write_text("a cat")
    with pytest.raises(ValueError, match="two images would share one caption"):
        collect(tmp_path, {"kind": "text_files"})


def test_a_manifest_keeps_the_captions(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "b.png")
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"image {name}")
    collection = collect(tmp_path, {"kind": "text_files"})
    path = tmp_path / "manifest.parquet"
    write_manifest(path, collection.class_names, collection.rows)
    assert Manifest(path).captions() == [["image a"], ["image b"]]
    (held_out,) = Manifest(path, "held_out").captions() or []
    assert held_out in (["image a"], ["image b"])
