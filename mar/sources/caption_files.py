"""Where the captions of a folder of images stand: four layouts, a line each in `LAYOUTS`.

All of them are read at once, before any image: what a caption belongs to is decided here, and what
belongs to nothing is counted, as a file of metadata in the wrong place or under another name is
otherwise ignored without a word.
"""
# pyarrow has no types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from mar.config import Config, choice
from mar.data.reading import read_file
from mar.sources.captions import read_texts


METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # as `datasets` calls them


class Found:
    """Captions, by the path of their image.

    Attributes:
        captions: Those of the images that exist.
        orphans: Paths of images that have a caption and do not exist, as their file calls them.
        files: How many files with captions were read.
    """

    def __init__(self, images: Iterable[str]) -> None:
        self.captions: dict[str, list[str]] = {path: [] for path in images}
        self.orphans: list[str] = []
        self.files = 0

    def add(self, path: str, captions: Iterable[str]) -> None:
        """Take the captions of one image."""
        if path in self.captions:
            self.captions[path] += captions
        else:
            self.orphans.append(path)


class Layout(Config):
    """Part `data.captions` of `params.yaml`."""

    def read(self, root: Path, images: list[str], others: list[str]) -> Found:
        """Return the captions of a folder's images.

        Args:
            root: The folder.
            images: Paths of images within it.
            others: Paths of its other files.

        Raises:
            ValueError: no file has captions, or one is not of this layout; the message names the
                file, and the line or key.
        """
        raise NotImplementedError


class MetadataFiles(Layout):
    """A file `metadata.jsonl`, `.csv` or `.parquet` in a folder of images (Hugging Face)."""

    kind: Literal["metadata"] = Field(description="files metadata.jsonl, .csv or .parquet")
    column: str = Field(min_length=1, description="the column of captions: text, or lists of texts")

    def read(self, root: Path, images: list[str], others: list[str]) -> Found:
        """Return the captions; `file_name` is a path within the folder of the file."""
        found = Found(images)
        for path in others:
            file = PurePosixPath(path)
            if file.name.lower() not in METADATA:
                continue
            found.files += 1
            for place, row in _rows(root / path):
                name = row.get("file_name")
                if not isinstance(name, str) or self.column not in row:
                    missing = repr("file_name" if name is None else self.column)
                    raise ValueError(
                        f"{root / path}: {place} has no {missing} (data.captions.column), but "
                        f"{', '.join(map(str, row))}"
                    )
                captions = read_texts(row[self.column], f"{root / path}: {place}")
                found.add(_joined(file.parent, name), captions)
        if not found.files:
            alike = [path for path in others if "metadata" in PurePosixPath(path).name.casefold()]
            hint = f"; did you mean {alike[0]}?" if alike else ""
            raise ValueError(f"{root} holds no file called {', '.join(METADATA)}{hint}")
        return found


class TextFiles(Layout):
    """A file `a.txt` beside `a.jpg`, whose content is the caption."""

    kind: Literal["text_files"] = Field(description="a .txt file beside each image")

    def read(self, root: Path, images: list[str], others: list[str]) -> Found:
        """Return the captions."""
        return _beside(root, images, others, ".txt", _read)


class JsonFiles(Layout):
    """A file `a.json` beside `a.jpg`, in which a key has the caption."""

    kind: Literal["json_files"] = Field(description="a .json file beside each image")
    key: str = Field(min_length=1, description="whose value is the caption, or a list of them")

    def read(self, root: Path, images: list[str], others: list[str]) -> Found:
        """Return the captions."""

        def value(file: Path) -> object:
            content = _json(_read(file), str(file))
            if not isinstance(content, dict) or self.key not in content:
                raise ValueError(f"{file} has no key {self.key!r} (data.captions.key)")
            return cast(dict[str, object], content)[self.key]

        return _beside(root, images, others, ".json", value)


class CocoFile(Layout):
    """A file of COCO's layout: `images` with `id` and `file_name`, `annotations` with `caption`."""

    kind: Literal["coco"] = Field(description="one file of annotations, as COCO has it")
    file: str = Field(min_length=1, description="that file, within the folder")

    def read(self, root: Path, images: list[str], others: list[str]) -> Found:
        """Return the captions; images are found by their name in whatever folder."""
        path = root / self.file
        if not path.is_file():
            raise ValueError(f"data.captions.file: {path} does not exist")
        content = _json(_read(path), str(path))
        try:
            names = {each["id"]: each["file_name"] for each in content["images"]}
            captions: dict[Any, list[str]] = {number: [] for number in names}
            for each in content["annotations"]:
                captions[each["image_id"]].append(each["caption"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a file of COCO captions: {error!r}") from None
        found = Found(images)
        found.files = 1
        places: dict[str, list[str]] = {}
        for image in images:
            places.setdefault(PurePosixPath(image).name, []).append(image)
        for number, name in names.items():
            within = places.get(PurePosixPath(name).name, [])
            if len(within) > 1:
                raise ValueError(
                    f"{path}: {name} may be {within[0]} or {within[1]}, names must be unique"
                )
            texts = read_texts(captions[number], f"{path}: {name}")
            found.add(within[0] if within else name, texts)
        return found


LAYOUTS = {
    "metadata": MetadataFiles,
    "text_files": TextFiles,
    "json_files": JsonFiles,
    "coco": CocoFile,
}
CaptionsConfig = Annotated[Layout, choice(LAYOUTS)]


def _beside(
    root: Path, images: list[str], others: list[str], ending: str, read: Callable[[Path], object]
) -> Found:
    """Read the file of this ending beside each image."""
    found = Found(images)
    by_stem = {str(PurePosixPath(image).with_suffix("")): image for image in images}
    if len(by_stem) < len(images):
        double = next(path for path in images if path not in set(by_stem.values()))
        raise ValueError(
            f"{root}: two images would share one caption, as {double} has the name of another but "
            "for its ending"
        )
    for path in others:
        file = PurePosixPath(path)
        if file.suffix.lower() != ending:
            continue
        found.files += 1
        texts = read_texts(read(root / path), str(root / path))
        found.add(by_stem.get(str(file.with_suffix("")), path), texts)
    if not found.files:
        raise ValueError(f"{root} holds no {ending} files with captions")
    return found


def _rows(file: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yield the rows of a file of metadata, each with how to call its place."""
    if file.suffix.lower() == ".parquet":
        try:
            table = pq.read_table(pa.BufferReader(_content(file)))
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{file} is no Parquet file, or damaged: {error}") from None
        for number, row in enumerate(table.to_pylist()):
            yield f"row {number}", row
        return
    text = _read(file)
    if file.suffix.lower() == ".csv":
        for number, row in enumerate(csv.DictReader(text.splitlines(keepends=True)), start=2):
            if None in row or None in row.values():
                raise ValueError(
                    f"{file}: line {number} has another number of fields than the first; a caption "
                    "with commas must stand in quotes"
                )
            yield f"line {number}", row
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            row = _json(line, f"{file}: line {number}")
            if not isinstance(row, dict):
                raise ValueError(f"{file}: line {number} is not an object of JSON")
            yield f"line {number}", cast(dict[str, object], row)


def _joined(folder: PurePosixPath, name: str) -> str:
    """Return a path that a file in a folder gives relative to itself."""
    parts = [part for part in (folder / name).parts if part != "."]
    return "/".join(parts)


def _read(file: Path) -> str:
    try:
        return _content(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} cannot be read as UTF-8 text: {error}") from None


def _content(file: Path) -> bytes:
    try:
        return read_file(file)[0]
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error}") from None


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{place} is not JSON: {error}") from None
