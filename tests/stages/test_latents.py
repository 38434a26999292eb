"""Latents are written and read the same, however many processes and devices take part."""

import contextlib
import json
import re
import shutil
from collections import namedtuple
from pathlib import Path

import encoding_in_processes as tiny_encoding
import pytest
import tiny_project as tiny
from processes import in_processes

from mar.data.dataset import ImageSet
from mar.files.atomic import digest
from stages.encode import MANIFEST


SHARDS = 6


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project of photographs, which is the present folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAR_WORKERS", "0")
    tiny_encoding.make_project(tmp_path)
    return tmp_path


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): digest(path) for path in files}


def encode(photos: Path, num: int, out: str) -> dict[str, str]:
    if num == 1:
        tiny_encoding.run_encode(photos, out)
    else:
        meeting = photos / "meeting" / f"{out}-{len(list(photos.glob('meeting/*')))}"
        with contextlib.chdir(tiny.ROOT):  # where they import the project from
            in_processes(tiny_encoding.run_encode, num, meeting, photos, out)
    return digests(photos / "out" / out)


# Writing


@pytest.mark.parametrize("num", [2, 4])
def test_any_number_of_processes_writes_the_same_bytes(num: int, photos: Path) -> None:
    """Two processes write three shards each, four write one or two."""
    alone = encode(photos, 1, "alone")
    assert encode(photos, num, "together") == alone
    assert len([name for name in alone if name.endswith(".arrow")]) == SHARDS
    assert {"latents.json", "metrics.json"} < set(alone)


def test_another_number_of_processes_makes_the_missing_shards_alone(photos: Path) -> None:
    before = encode(photos, 1, "encode")
    made = photos / "work/encode/latents"
    kept = {path.name: path.stat().st_mtime_ns for path in made.iterdir()}
    for name in ("00001.arrow", "00002.arrow"):
        (made / name).unlink()
    damaged = made / "00005.arrow"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.unlink()  # the outputs are links to the same file
    damaged.write_bytes(content)
    shutil.rmtree(photos / "out/encode")
    assert encode(photos, 3, "encode") == before
    now = {path.name: path.stat().st_mtime_ns for path in made.iterdir()}
    assert {name for name in kept if now[name] == kept[name]} == {
        "00000.arrow",
        "00003.arrow",
        "00004.arrow",
    }


def test_an_image_that_one_process_cannot_read_ends_all_by_its_name(photos: Path) -> None:
    """Which is in the fifth shard, the third one of the first process."""
    name = ImageSet(MANIFEST, "train", 8).names[17]
    broken = photos / "photos" / name
    broken.write_bytes(broken.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"{name} has \d+ bytes, \d+ when prepare ran"):
        encode(photos, 2, "encode")
    left = {path.name for path in (photos / "work/encode/latents").iterdir()}
    assert left < {f"{number:05d}.arrow" for number in range(SHARDS)}
    assert not (photos / "out/encode").exists()


def test_what_the_disk_must_hold_is_said_before(
    photos: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(photos, 1, "encode")
    # 3 channels in 16 bit and an index of 16 bit, of 4 x 4 latents, twice.
    said = r"encode: 22 images x 256 bytes = 0\.0 MB in work/encode/latents; [\d,.]+ GB are free\n"
    assert re.search(said, capfd.readouterr().err)

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 10**6 - 1000, 1000))
    shutil.rmtree(photos / "work/encode")
    with pytest.raises(ValueError, match="no room for the latents: 22 images x 256 bytes"):
        encode(photos, 1, "encode")
    assert not list((photos / "work/encode/latents").iterdir())


def test_arithmetic_states_what_it_does_to_latents(
    photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    encode(photos, 1, "exact")
    assert json.loads((photos / "out/exact/metrics.json").read_text())["precision_error"] == 0
    assert "moves latents" not in capfd.readouterr().err
    tiny_encoding.make_project(photos, precision="bfloat16")
    encode(photos, 1, "rounded")
    error = json.loads((photos / "out/rounded/metrics.json").read_text())["precision_error"]
    assert 2**-12 < error < 2**-4  # 8 bits, through a few layers
    assert f"encode: bfloat16 moves latents by {error:.2g} of" in capfd.readouterr().err
    shard = "latents/00000.arrow"
    assert digest(photos / "out/exact" / shard) != digest(photos / "out/rounded" / shard)


def test_arithmetic_that_the_device_lacks_is_refused(photos: Path) -> None:
    tiny_encoding.make_project(photos, precision="tf32")
    expected = r"latents\.precision: 'tf32' is arithmetic of CUDA GPUs, and the device is cpu"
    with pytest.raises(ValueError, match=expected):
        encode(photos, 1, "encode")


# Reading


@pytest.mark.parametrize("on_device", ["0", "1"])
def test_where_latents_are_held_changes_no_weight(
    on_device: str, project: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("prepare", "train_tokenizer", "encode", "encode_text"):
        shutil.copytree(finished / "out" / name, project / "out" / name)
    monkeypatch.setenv("MAR_CACHE_ON_DEVICE", on_device)
    tiny.run_stage("train_generator")
    weights = Path("out/train_generator/ema.safetensors")
    assert digest(project / weights) == digest(finished / weights)
