"""`prepare` writes a manifest of every image that can be decoded, or nothing."""

import json
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter
from ruamel.yaml import YAML
from sample_shards import write_parquet, write_tar

from mar.data.dataset import ImageSet
from mar.data.formats import EXPECTED
from mar.sources.registry import DataConfig
from mar.sources.source import DataSource
from stages import prepare
from stages.images import open_images
from stages.stage import Stage
from stages.tracking import Run


DIGITS = "data: {source: digits, image_size: 16, held_out_fraction: 0.2, seed: 0}"
FOLDER = """
data:
  source: folder
  path: photos
  image_size: 8
  held_out_fraction: 0.5
  max_unreadable: 1
  seed: 0
"""


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAR_WORKERS", "0")
    out = Path("out/prepare")
    return Stage("prepare", out, tmp_path / "work", torch.device("cpu"), Run("prepare"))


def make_photos(num: int) -> None:
    for index in range(num):
        file = Path("photos", "ab"[index % 2], f"{index}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (index, 0, 0)).save(file)


def test_the_digits_are_prepared(stage: Stage) -> None:
    Path("params.yaml").write_text(DIGITS)
    prepare.main(stage)
    metrics = json.loads(Path("out/prepare/metrics.json").read_text())
    assert metrics == {
        "num_train": 1438,
        "num_held_out": 359,
        "num_classes": 10,
        "num_unreadable": 0,
    }
    assert json.loads(Path("out/prepare/classes.json").read_text()) == list("0123456789")
    assert Path("out/prepare/unreadable.csv").read_text() == "path,reason\n"
    train = ImageSet(Path("out/prepare/manifest.parquet"), "train", 16)
    image, label = train[0]
    assert (len(train), label) == (1438, 0)
    assert image.float().std() > 50  # a digit, not a blank


def test_a_file_that_cannot_be_decoded_is_named_and_left_out(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("params.yaml").write_text(FOLDER)
    make_photos(8)
    Path("photos/a/0.png").write_text("hello, world")
    prepare.main(stage)
    reason = f"text, expected {EXPECTED}"
    expected = f"left out 1 of 8 files that cannot be decoded:\n  a/0.png: {reason}\n"
    assert expected in capsys.readouterr().err
    listed = Path("out/prepare/unreadable.csv").read_text()
    assert listed == f'path,reason\na/0.png,"{reason}"\n'
    manifest = pq.read_table("out/prepare/manifest.parquet")
    assert manifest["path"].to_pylist() == [
        "a/2.png",
        "a/4.png",
        "a/6.png",
        "b/1.png",
        "b/3.png",
        "b/5.png",
        "b/7.png",
    ]
    metrics = json.loads(Path("out/prepare/metrics.json").read_text())
    assert (metrics["num_train"], metrics["num_held_out"]) == (3, 4)
    assert metrics["num_unreadable"] == 1


def test_what_is_odd_is_said_once_and_the_last_line_sums_up(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("params.yaml").write_text(FOLDER)
    make_photos(8)
    for name in ("photos/notes.txt", "photos/a/1.heic", "photos/b/2.HEIC", "photos/.DS_Store"):
        Path(name).touch()
    Path("photos/__MACOSX").mkdir()
    prepare.main(stage)
    said = capsys.readouterr().err
    assert said.count("prepare: ignored 3 of 11 files (27 %) that are no images by their") == 1
    assert said.count("prepare: skipped 2 hidden files or folders, or those of operating s") == 1
    assert said.splitlines()[-1] == "prepare: 8 images, 2 classes, e.g. a, b, 4 held out"
    Path("photos/a").rename("photos/\x1b[31m\n")
    prepare.main(stage)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "prepare: 8 images, 2 classes, e.g. \\x1b[31m\\n, b, 4 held out"


def test_too_many_broken_files_stop_before_anything_is_written(stage: Stage) -> None:
    Path("params.yaml").write_text(FOLDER)
    make_photos(8)
    Path("photos/a/0.png").write_bytes(b"")
    Path("photos/b/1.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^2 of 8 files in \S*photos cannot be decoded, "):
        prepare.main(stage)
    assert not stage.out.exists()


def manifest_after(stage: Stage, params: str) -> bytes:
    Path("params.yaml").write_text(params)
    prepare.main(stage)
    return Path("out/prepare/manifest.parquet").read_bytes()


def test_where_the_images_lie_and_how_many_may_be_broken_do_not_change_the_manifest(
    stage: Stage,
) -> None:
    make_photos(8)
    first = manifest_after(stage, FOLDER)
    Path("photos").rename("elsewhere")
    assert manifest_after(stage, FOLDER.replace("path: photos", "path: elsewhere")) == first
    moved = FOLDER.replace("path: photos", f"path: {Path('elsewhere').absolute()}")
    assert manifest_after(stage, moved.replace("unreadable: 1", "unreadable: 5")) == first
    Path("elsewhere/a/broken.png").touch()
    assert manifest_after(stage, moved) == first
    make_photos(2)
    Path("photos/a/0.png").rename("elsewhere/a/new.png")
    assert manifest_after(stage, moved) != first


def test_later_starts_read_new_and_changed_files_alone(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    make_photos(8)
    time.sleep(0.1)  # files just written are read again, as they may still change
    first = manifest_after(stage, FOLDER)
    capsys.readouterr()
    assert manifest_after(stage, FOLDER) == first
    assert "prepare: 8 files are as they were when read\n" in capsys.readouterr().err
    Image.new("RGB", (8, 8), (200, 0, 0)).save("photos/a/0.png")
    assert manifest_after(stage, FOLDER) != first
    assert "prepare: 7 files are as they were when read\n" in capsys.readouterr().err


def test_larger_images_are_read_with_a_variable(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_photos(8)
    monkeypatch.setenv("MAR_MAX_PIXELS", "63")
    with pytest.raises(ValueError, match="up to MAR_MAX_PIXELS of them are read, which is 63"):
        manifest_after(stage, FOLDER)
    monkeypatch.setenv("MAR_MAX_PIXELS", "64")
    manifest_after(stage, FOLDER)


PARQUET = """
data:
  source: parquet
  path: photos
  image_column: image
  label_column: label
  caption_column: null
  class_names: null
  image_size: 8
  held_out_fraction: 0.5
  max_unreadable: 1
  seed: 0
"""
WEBDATASET = """
data:
  source: webdataset
  path: photos
  label: cls
  caption: null
  class_names: null
  image_size: 8
  held_out_fraction: 0.5
  max_unreadable: 1
  seed: 0
"""


def make_shards(num: int) -> None:
    """Put the images of `make_photos` into Parquet files and tar archives, in the same order."""
    files = sorted(Path("photos").glob("*/*.png"))
    contents, labels = [file.read_bytes() for file in files], [file.parent.name for file in files]
    for index in range(num):
        part = slice(index * len(files) // num, (index + 1) * len(files) // num)
        write_parquet(Path(f"parquet/{index}.parquet"), contents[part], labels[part])
        samples: dict[str, bytes] = {}
        for at, (content, label) in enumerate(zip(contents[part], labels[part], strict=True)):
            samples |= {f"{at}.png": content, f"{at}.cls": label.encode()}
        write_tar(Path(f"tar/{index}.tar"), samples)


def test_a_folder_parquet_and_tar_of_the_same_images_give_the_same_tensors(stage: Stage) -> None:
    make_photos(12)
    make_shards(3)
    expected: tuple[list[str], torch.Tensor, torch.Tensor] | None = None
    for params in (
        FOLDER,
        PARQUET.replace("photos", "parquet"),
        WEBDATASET.replace("photos", "tar"),
    ):
        manifest_after(stage, params)
        metrics = json.loads(Path("out/prepare/metrics.json").read_text())
        assert (metrics["num_train"], metrics["num_held_out"]) == (6, 6)
        assert Path("out/prepare/unreadable.csv").read_text() == "path,reason\n"
        images = open_images(stage, Path("out/prepare/manifest.parquet"), "train", 8)
        found = (images.class_names, images.labels, images.stack(list(range(6))))
        expected = expected or found
        assert found[0] == expected[0] == ["a", "b"]
        assert torch.equal(found[1], expected[1])
        assert torch.equal(found[2], expected[2])


@pytest.mark.parametrize(("params", "folder"), [(PARQUET, "parquet"), (WEBDATASET, "tar")])
def test_shards_are_prepared_once_and_wherever_they_lie(
    stage: Stage, capsys: pytest.CaptureFixture[str], params: str, folder: str
) -> None:
    make_photos(12)
    make_shards(3)
    time.sleep(0.1)  # files just written are read again, as they may still change
    params = params.replace("photos", folder)
    first = manifest_after(stage, params)
    said = capsys.readouterr().err
    assert said.splitlines()[-1] == "prepare: 12 images, 2 classes, e.g. a, b, 6 held out"
    assert manifest_after(stage, params) == first
    assert "prepare: 3 files are as they were when read\n" in capsys.readouterr().err
    Path(folder).rename("elsewhere")
    assert manifest_after(stage, params.replace(f"path: {folder}", "path: elsewhere")) == first


def test_images_of_shards_that_cannot_be_used_are_listed(stage: Stage) -> None:
    make_photos(12)
    Path("photos/a/0.png").write_text("hello, world")
    make_shards(1)
    for params, name in (
        (PARQUET.replace("photos", "parquet"), "0.parquet/0"),
        (WEBDATASET.replace("photos", "tar"), "0.tar/0.png"),
    ):
        manifest_after(stage, params)
        listed = Path("out/prepare/unreadable.csv").read_text()
        assert listed.startswith(f'path,reason\n{name},"text, expected ')
        metrics = json.loads(Path("out/prepare/metrics.json").read_text())
        assert (metrics["num_train"], metrics["num_unreadable"]) == (6, 1)


def test_every_source_answers_whether_it_has_images() -> None:
    sections = YAML(typ="safe").load(DIGITS)
    adapter: TypeAdapter[DataSource] = TypeAdapter(DataConfig)
    none = {"source": "none", "image_size": 8, "classes": ["a"]}
    assert adapter.validate_python(sections["data"]).has_images
    assert not adapter.validate_python(none).has_images


def test_the_outputs_are_the_same_bytes_each_time(stage: Stage) -> None:
    Path("params.yaml").write_text(DIGITS)
    prepare.main(stage)
    first = {file.name: file.read_bytes() for file in stage.out.iterdir()}
    prepare.main(stage)
    assert {file.name: file.read_bytes() for file in stage.out.iterdir()} == first
    assert set(first) == {"manifest.parquet", "classes.json", "unreadable.csv", "metrics.json"}


def test_a_relative_folder_is_found_from_a_temporary_copy_of_the_repository(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC runs queued experiments in a copy, and says where the repository is."""
    make_photos(8)
    copy = tmp_path / "copy"
    copy.mkdir()
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    Path("params.yaml").write_text(FOLDER)
    prepare.main(stage)
    images = open_images(stage, Path("out/prepare/manifest.parquet"), "train", 8)
    assert images.image_size == 8
    assert {int(image[0, 0, 0]) for image, _ in (images[i] for i in range(len(images)))} < {
        *range(8)
    }
