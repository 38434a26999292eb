"""A file of ours that is not what was written is never used, whatever its format and the damage."""

import errno
import json
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mar.data.manifest import Manifest, Row, write_manifest
from mar.evaluation.reference import Reference, ReferenceInfo
from mar.evaluation.statistics import Statistics
from mar.files import atomic, seal, weights
from mar.files.seal import DamagedFileError
from mar.latents.cache import measure_latents, write_latents
from mar.latents.info import LatentsInfo
from mar.latents.posterior import LatentShape
from mar.sampling.store import SampleSet, write_shard


@contextmanager
def limited(size: int) -> Iterator[None]:
    """Let no file grow beyond some bytes, which programs see as they see a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Kind(NamedTuple):
    """A kind of file: its name, what writes it, and what reads it as the stages do."""

    name: str
    write: Callable[[Path], object]
    read: Callable[[Path], object]


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def write_latent_shard(path: Path) -> None:
    labels, names = torch.arange(5), [f"{index}.png" for index in range(5)]
    write_latents(path, draw(5, 4, 2, 2), None, labels=labels, names=names, dtype="float16")


def write_sample_shard(path: Path) -> None:
    images = (draw(3, 3, 4, 4) * 50 + 128).to(torch.uint8)
    write_shard(path, images, labels=torch.arange(3), first_index=0, num_classes=3, seed=0)


def new_reference() -> Reference:
    return Reference(Statistics(draw(4).double(), draw(4, 4).double(), 9), draw(2, 4), "training")


REFERENCE = ReferenceInfo(
    id="0123",
    extractor="classifier",
    weights="a" * 64,
    source="training split",
    image_size=8,
    num_reference=9,
    num_features=2,
    class_counts=[5, 4],
    num_held_out=1,
    held_out={"frechet_classifier_distance": 1.5},
)
LATENTS = LatentsInfo(
    tokenizer="a" * 64,
    transform="",
    dtype="float16",
    flips=False,
    count=5,
    num_classes=3,
    class_counts=[],
    codebook_size=None,
    shape=[2, 2, 2],
    latent_std=1.0,
    largest=3.0,
    mean=0.0,
    std=1.0,
    channel_mean=[0.0, 0.0],
    channel_std=[1.0, 1.0],
)
CLASS_NAMES = ["cat", "dog"]
ROWS = [Row(f"{index}.png", b"content", index % 2, 7, bytes(32), "train") for index in range(9)]

KINDS = [
    Kind(
        "00000.arrow",
        write_latent_shard,
        lambda path: measure_latents(path.parent, LatentShape(2, 2, 2)),
    ),
    Kind("00000.arrow", write_sample_shard, lambda path: SampleSet(path.parent)),
    Kind(
        "ema.safetensors",
        lambda path: weights.save(path, nn.Linear(3, 4), {"generator": {}}),
        weights.load,
    ),
    Kind("statistics.safetensors", lambda path: new_reference().save(path), Reference.load),
    Kind("reference.json", REFERENCE.write, ReferenceInfo.read),
    Kind("latents.json", LATENTS.write, LatentsInfo.read),
    Kind("manifest.parquet", lambda path: write_manifest(path, CLASS_NAMES, ROWS), Manifest),
]
NAMES = [
    "latents",
    "samples",
    "weights",
    "statistics",
    "reference",
    "latents.json",
    "manifest",
]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=NAMES)


def refuse(kind: Kind, path: Path, message: str) -> None:
    with pytest.raises(DamagedFileError, match=rf"{kind.name} {message}") as raised:
        kind.read(path)
    assert raised.value.path == path


@each_kind
@pytest.mark.parametrize("bit", [0, 5])
def test_a_flipped_bit_is_found_wherever_it_is(kind: Kind, bit: int, tmp_path: Path) -> None:
    path = tmp_path / kind.name
    kind.write(path)
    kind.read(path)
    content = path.read_bytes()
    seals = [content.index(b"mar-sha256:") + offset for offset in (0, 10, 11, 74)]
    ends = [0, 1, 7, len(content) - 9, len(content) - 1]
    steps = range(0, len(content), max(1, len(content) // 40))
    for offset in {*seals, *ends, *steps}:
        damaged = bytearray(content)
        damaged[offset] ^= 1 << bit
        path.write_bytes(damaged)
        refuse(kind, path, "(is damaged: its content has the SHA-256 .*, expected|holds no digest)")
    path.write_bytes(content)
    kind.read(path)


@each_kind
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(kind: Kind, share: float, tmp_path: Path) -> None:
    path = tmp_path / kind.name
    kind.write(path)
    os.truncate(path, int(share * path.stat().st_size))
    refuse(kind, path, "(is damaged|holds no digest)")


@each_kind
def test_an_empty_file_zeros_and_garbage_are_refused(kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / kind.name
    path.touch()
    refuse(kind, path, "is damaged: it is empty")
    for content in (bytes(5000), b"\xff" * 5000, b"{}", b"null", b"\x89PNG"):
        path.write_bytes(content)
        refuse(kind, path, "holds no digest of its content .* another version or program wrote it")


@each_kind
def test_bytes_that_are_added_or_zeroed_are_noticed(kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / kind.name
    kind.write(path)
    content = path.read_bytes()
    half = len(content) // 2
    for changed in (content + b"\n", content[:half] + bytes(8) + content[half + 8 :]):
        if changed != content:
            path.write_bytes(changed)
            refuse(kind, path, "(is damaged|holds no digest)")


@each_kind
def test_the_same_content_makes_the_same_bytes(kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / kind.name
    torch.manual_seed(0)
    kind.write(path)
    first = path.read_bytes()
    torch.manual_seed(0)
    kind.write(path)
    assert path.read_bytes() == first
    assert b"mar-sha256:" + 64 * b"0" not in first


def test_other_programs_read_what_is_sealed(tmp_path: Path) -> None:
    weights.save(tmp_path / "a.safetensors", nn.Linear(3, 4), {})
    assert set(load_file(tmp_path / "a.safetensors")) == {"weight", "bias"}
    write_latent_shard(tmp_path / "a.arrow")
    assert pa.ipc.open_file(tmp_path / "a.arrow").read_all().num_rows == 5
    write_manifest(tmp_path / "a.parquet", CLASS_NAMES, ROWS)
    assert pq.read_table(tmp_path / "a.parquet").num_rows == 9
    LATENTS.write(tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())["latent_std"] == 1.0


def test_files_of_many_pieces_are_sealed_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seal, "PIECE", 1000)
    path = tmp_path / "a"
    for before in (0, 920, 930, 999, 5000):  # the seal lies across two pieces
        with seal.sealing(path) as partial:
            partial.write_bytes(before * b"x" + seal.BLANK.encode() + 900 * b"y")
        seal.check(path)
        content = path.read_bytes()
        for offset in range(0, len(content), 97):
            damaged = bytearray(content)
            damaged[offset] ^= 4
            path.write_bytes(damaged)
            with pytest.raises(DamagedFileError):
                seal.check(path)


def test_two_seals_that_differ_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text(f"{seal.MARK}{'1' * 64} {seal.MARK}{'2' * 64}")
    with pytest.raises(DamagedFileError, match=f"expected {'1' * 64} and {'2' * 64}"):
        seal.check(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"latents\.json is missing; the stage that makes it"):
        LatentsInfo.read(tmp_path / "latents.json")


@each_kind
def test_a_full_disk_leaves_the_old_file_and_says_so(kind: Kind, tmp_path: Path) -> None:
    """Each library has an error of its own for it."""
    path = tmp_path / kind.name
    torch.manual_seed(0)
    kind.write(path)
    before = path.read_bytes()
    with limited(200), pytest.raises(OSError, match=rf"{kind.name} cannot be written: ") as raised:
        kind.write(path)
    assert "\n" not in str(raised.value)
    assert "what was there before is kept" in str(raised.value)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_does_not_fit_a_disk_is_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    made, out = tmp_path / "made", tmp_path / "out"
    atomic.write_text(made / "deep" / "a.arrow", 5000 * "a")
    expected = r"out\.partial/deep/a\.arrow cannot be written: its disk is full"
    with limited(200), pytest.raises(atomic.UnwritableError, match=expected):
        atomic.publish_folder(made, out)
    atomic.publish_folder(made, out)
    assert (out / "deep" / "a.arrow").read_text() == 5000 * "a"


def test_a_disk_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "latents.json"
    LATENTS.write(path)

    def fail(*_: Any) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(OSError, match=r"latents\.json cannot be read: Input/output error"):
        LatentsInfo.read(path)


@pytest.mark.parametrize("text", ["", "{", "nan nan", "\xff", "[" * 100_000])
def test_json_that_is_damaged_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"classes\.json is damaged, as it is not valid JSON"):
        atomic.read_json(path)
    with pytest.raises(ValueError, match=r"other\.json is missing"):
        atomic.read_json(tmp_path / "other.json")
