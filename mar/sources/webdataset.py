"""The data source `webdataset`: tar archives in which the files of a sample share a name.

The files of a sample stand one after another, as `n01440764_10026.jpg` and `n01440764_10026.cls`:
a sample's key is a file's name up to its first dot, and what follows says which of its files it is.
"""

import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, ClassVar, Literal, cast

from pydantic import Field, model_validator

from mar.data.formats import EXTENSIONS
from mar.sources.captions import read_texts
from mar.sources.folder_entries import is_junk, show
from mar.sources.shard_notes import Noted, broken, note
from mar.sources.shards import ShardData


PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
MAX_VALUE = 1 << 20  # bytes: more are no label and no caption
MEMBER = r"^[^./]+(\.[^./]+)*$"  # the ending of a file, or that and keys of JSON
PIECE = 1 << 20  # bytes behind the end of an archive that are looked at together


class WebDatasetData(ShardData):
    """Images of any size in tar archives, as WebDataset and timm hand out ImageNet."""

    ending: ClassVar[str] = ".tar"
    packed: ClassVar[tuple[str, ...]] = (
        *(f".tar.{kind}" for kind in ("gz", "bz2", "xz", "zst", "lz4")),
        *(".tgz", ".tbz2", ".txz", ".tzst"),
    )
    modules: ClassVar[tuple[ModuleType, ...]] = ()

    source: Literal["webdataset"] = Field(description="a folder of tar archives")
    label: str | None = Field(
        pattern=MEMBER,
        description="the file of a sample that holds its label, a number or text: its ending "
        "(cls, txt), or for a value within a JSON file json and the key (json.label); null: no "
        "classes",
    )
    caption: str | None = Field(
        pattern=MEMBER,
        description="the file that holds its caption, or several in JSON: txt, json.caption; null: "
        "no captions",
    )

    @model_validator(mode="after")
    def _check(self) -> "WebDatasetData":
        self.require_one("label", "caption")
        return self

    @property
    def has_captions(self) -> bool:
        """Whether a file is that of captions."""
        return self.caption is not None

    @property
    def reading(self) -> dict[str, str | None]:
        """The file with the label or the caption."""
        return {"label": self.label, "caption": self.caption}

    def note(self, file: Path, max_pixels: int) -> tuple[Iterator[Noted], None]:
        """Read an archive; return its images one after another.

        An image is called as in the archive.

        Raises:
            ValueError: it is damaged, cut off, compressed, or holds no samples.
        """
        return self._samples(file, max_pixels), None

    def _samples(self, file: Path, max_pixels: int) -> Iterator[Noted]:
        try:
            with file.open("rb") as content:
                seen: set[str] = set()
                for sample in _samples(content):
                    name = show(sample.image_name)
                    if sample.key in seen:
                        yield broken(
                            f"{name} at byte {sample.offset}",
                            f"two samples have the key {show(sample.key)}, or the files of one do "
                            "not stand one after another",
                        )
                    else:
                        seen.add(sample.key)
                        yield self._note_sample(content, sample, name, max_pixels)
        except tarfile.TarError as error:
            raise ValueError(f"{file} is no tar archive, or damaged: {error}") from None
        except OSError as error:
            raise ValueError(f"{file}: {error.strerror}") from None
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None

    def _note_sample(
        self, content: BinaryIO, sample: "_Sample", name: str, max_pixels: int
    ) -> Noted:
        if sample.fault is not None:
            return broken(name, sample.fault)
        where = self.label or self.caption or ""
        ending, _, key = where.partition(".") if where.startswith("json.") else (where, "", "")
        what = "caption" if self.has_captions else "label"
        label, captions = None, None
        try:
            ending = sample.called(ending)
            if (member := sample.members.get(ending)) is not None:
                value = _value(_read(content, member), key)
                if value is not None and self.has_captions:
                    captions = read_texts(value, ending)
                elif value is not None:
                    label = _label(value)
        except ValueError as error:
            return broken(name, f"its {what} in {ending} cannot be read: {error}")
        if label is None and captions is None:
            return broken(name, f"it has no {where}, but {', '.join(sample.members)}")
        image = sample.images[0]
        member = sample.members[image]
        noted = note(name, label, _read(content, member), max_pixels)
        return noted._replace(
            offset=member.offset_data,
            stored=member.size,
            unpacked=member.size,
            captions=captions,
            unused=", ".join(other for other in sample.members if other not in (ending, image)),
        )


class _Sample:
    """The files of a sample.

    Attributes:
        key: What their names share.
        members: They, by their endings.
        images: The endings of those that are images.
        fault: What is wrong with them, or None.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self.members: dict[str, tarfile.TarInfo] = {}
        self._odd: str | None = None

    def add(self, ending: str, member: tarfile.TarInfo) -> None:
        """Add a file."""
        if ending in self.members:
            self._odd = f"it has two files {ending}"
        elif not member.isreg() or member.issparse():
            self._odd = f"{show(member.name)} is no plain file, but a link, a device or sparse"
        self.members[ending] = member

    def called(self, ending: str) -> str:
        """Return how a file's ending is written here: its capitals do not matter."""
        alike = (other for other in self.members if other.lower() == ending.lower())
        return ending if ending in self.members else next(alike, ending)

    @property
    def images(self) -> list[str]:
        return [ending for ending in self.members if f".{ending.lower()}" in EXTENSIONS]

    @property
    def offset(self) -> int:
        """Where its first file begins in the archive."""
        return min(member.offset for member in self.members.values())

    @property
    def image_name(self) -> str:
        """The name of its image, or of its first file."""
        return self.members[(self.images or list(self.members))[0]].name

    @property
    def fault(self) -> str | None:
        if self._odd is None and len(self.images) != 1:
            some = "no image" if not self.images else f"{len(self.images)} images"
            return f"it has {some}, expected one: its files are {', '.join(self.members)}"
        return self._odd


def _samples(content: BinaryIO) -> Iterator[_Sample]:
    """Yield the samples of an archive.

    Raises:
        ValueError: it is compressed, or does not end as archives do.
        tarfile.TarError: it is damaged.
    """
    start = content.read(8)
    content.seek(0)
    for magic, name in PACKED.items():
        if start.startswith(magic):
            raise ValueError(f"it is compressed by {name}, expected a plain tar archive")
    sample: _Sample | None = None
    with tarfile.open(fileobj=content, mode="r:") as archive:
        while (member := archive.next()) is not None:
            cast(Any, archive).members.clear()  # it would keep all
            folder, _, file = member.name.rpartition("/")
            if member.isdir() or is_junk(file):
                continue
            stem, _, ending = file.partition(".")
            key = f"{folder}/{stem}" if folder else stem
            if sample is None or sample.key != key:
                if sample is not None:
                    yield sample
                sample = _Sample(key)
            sample.add(ending, member)
        _require_end(content, archive.offset)
    if sample is not None:
        yield sample


def _require_end(content: BinaryIO, offset: int) -> None:
    """Refuse an archive that does not end in zeros: `tarfile` takes what is damaged for the end."""
    content.seek(offset)
    rest = content.read(tarfile.BLOCKSIZE)
    if len(rest) < tarfile.BLOCKSIZE:
        raise ValueError(f"it is cut off at byte {offset}, where a tar archive has zeros")
    while rest:
        if any(rest):
            raise ValueError(
                f"behind byte {offset}, where the archive ends, are bytes that are not zero: it is "
                "damaged, or several archives in one file"
            )
        rest = content.read(PIECE)


def _read(content: BinaryIO, member: tarfile.TarInfo) -> bytes:
    return os.pread(content.fileno(), member.size, member.offset_data)


def _value(content: bytes, key: str) -> object:
    """Return the whole content of a file as text, or the value that JSON has for a key.

    Raises:
        ValueError: the content is too large, no UTF-8 or no JSON.
    """
    if len(content) > MAX_VALUE:
        raise ValueError(f"it has {len(content)} bytes")
    value: object = content.decode()
    if key:
        value = json.loads(content)
        for part in key.split("."):
            value = cast(Mapping[str, object], value).get(part) if isinstance(value, dict) else None
    return value


def _label(value: object) -> str | None:
    """Return a label as text, or None where it is empty.

    Raises:
        ValueError: it is no number and no text.
    """
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError(f"it is {value!r:.80}, expected a whole number or text")
    return str(value).strip() or None
