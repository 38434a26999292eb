"""The data source `parquet`: Parquet files as the Hugging Face Hub hands out image data sets.

A row is an image: a column of structs with the fields `bytes` and `path` (the feature `Image`), or
of plain bytes, and a column of labels, whole numbers or text, or else one of captions, text or
lists. The names of the classes are in the schema's metadata (the feature `ClassLabel`).
"""
# pyarrow has no types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import BinaryIO, ClassVar, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from mar.sources import parquet_pages
from mar.sources.captions import read_texts
from mar.sources.parquet_pages import ChunkReader
from mar.sources.shard_notes import Noted, broken, note
from mar.sources.shards import ShardData


BATCH = 16  # rows that are held at a time
BUFFER = 1 << 20  # bytes of a file that are read at a time


class ParquetData(ShardData):
    """Images of any size in Parquet files, as ImageNet is handed out on the Hugging Face Hub."""

    ending: ClassVar[str] = ".parquet"
    modules: ClassVar[tuple[ModuleType, ...]] = (parquet_pages,)

    source: Literal["parquet"] = Field(description="a folder of Parquet files")
    image_column: str = Field(
        min_length=1, description="the column of images: structs with a field `bytes`, or bytes"
    )
    label_column: str | None = Field(
        min_length=1, description="the column of labels: whole numbers, or text; null: no classes"
    )
    caption_column: str | None = Field(
        min_length=1, description="the column of captions: text, or lists; null: no captions"
    )

    @model_validator(mode="after")
    def _check(self) -> "ParquetData":
        self.require_one("label_column", "caption_column")
        return self

    @property
    def has_captions(self) -> bool:
        """Whether a column is that of captions."""
        return self.caption_column is not None

    @property
    def reading(self) -> dict[str, str | None]:
        """The columns."""
        return {
            "image": self.image_column,
            "label": self.label_column,
            "caption": self.caption_column,
        }

    @property
    def _said_by(self) -> str:
        """The column of labels or captions."""
        name = self.label_column or self.caption_column
        assert name is not None  # see `_check`
        return name

    def note(self, file: Path, max_pixels: int) -> tuple[Iterator[Noted], list[str] | None]:
        """Read a file; return its images one after another, and the names of the classes.

        An image is called by the number of its row.

        Raises:
            ValueError: it is damaged, lacks a column, has one of another type, or its images are
                stored in a way that they cannot be read one by one.
        """
        try:
            with pq.ParquetFile(file) as opened:
                self._require_columns(opened.schema_arrow)
                names = _class_names(opened.schema_arrow, self._said_by)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _named(file, error) from None
        return self._rows(file, max_pixels), names

    def _require_columns(self, schema: pa.Schema) -> None:
        for key, name in self.reading.items():
            if name is not None and name not in schema.names:
                raise ValueError(
                    f"it has no column {name!r} (data.{key}_column), but {', '.join(schema.names)}"
                )
        image = schema.field(self.image_column).type
        if pa.types.is_struct(image):
            index = image.get_field_index("bytes")
            image = image.field(index).type if index >= 0 else image
        if not _is_binary(image):
            raise ValueError(
                f"its column {self.image_column!r} is of the type {image}, expected structs with a "
                "field `bytes`, or bytes"
            )
        kind = schema.field(self._said_by).type
        if self.has_captions:
            fits, expected = _is_text(kind) or _is_texts(kind), "text, or lists of texts"
        else:
            fits, expected = pa.types.is_integer(kind) or _is_text(kind), "whole numbers or text"
        if not fits:
            raise ValueError(
                f"its column {self._said_by!r} is of the type {kind}, expected {expected}"
            )

    def _rows(self, file: Path, max_pixels: int) -> Iterator[Noted]:
        try:
            with (
                pq.ParquetFile(
                    file, buffer_size=BUFFER, pre_buffer=False, page_checksum_verification=True
                ) as opened,
                file.open("rb") as plain,
            ):
                first = 0
                for group in range(opened.num_row_groups):
                    yield from self._group(opened, plain, group, first, max_pixels)
                    first += opened.metadata.row_group(group).num_rows
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _named(file, error) from None

    def _group(
        self, opened: pq.ParquetFile, plain: BinaryIO, group: int, first: int, max_pixels: int
    ) -> Iterator[Noted]:
        """Yield what is noted of the images of a row group, whose rows count from `first`."""
        image = opened.schema_arrow.field(self.image_column)
        nested = pa.types.is_struct(image.type)
        path = f"{self.image_column}.bytes" if nested else self.image_column
        described = opened.metadata.row_group(group)
        chunks = [described.column(index) for index in range(described.num_columns)]
        (chunk,) = [chunk for chunk in chunks if chunk.path_in_schema == path]
        reader = ChunkReader(plain, chunk)
        columns = [path, self._said_by]
        used = {self.image_column, self._said_by}
        unused = ", ".join(name for name in opened.schema_arrow.names if name not in used)
        batches = opened.iter_batches(BATCH, row_groups=[group], columns=columns, use_threads=False)
        row = first
        for batch in batches:
            images = batch.column(self.image_column)
            contents = images.field("bytes") if nested else images
            for content, said in zip(
                contents.to_pylist(), batch.column(self._said_by).to_pylist(), strict=True
            ):
                noted = self._note_row(str(row), content, said, reader, max_pixels)
                yield noted._replace(unused=unused)
                row += 1

    def _note_row(
        self,
        name: str,
        content: bytes | None,
        said: object,
        reader: ChunkReader,
        max_pixels: int,
    ) -> Noted:
        if content is None:
            return broken(name, f"it has no bytes in the column {self.image_column!r}")
        label = None if self.has_captions or said is None else str(said).strip()
        noted = note(name, label or None, content, max_pixels)
        if self.has_captions and said is not None:
            noted = noted._replace(captions=read_texts(said, name))
        return noted._replace(**reader.find(content)._asdict()) if content else noted


def _class_names(schema: pa.Schema, column: str) -> list[str] | None:
    """Return the names that the Hub's metadata have for a column of numbers, if they do.

    Raises:
        ValueError: the metadata are not as the Hub writes them.
    """
    described = (schema.metadata or {}).get(b"huggingface")
    if described is None:
        return None
    try:
        feature = json.loads(described)["info"]["features"][column]
        names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(
            f"its metadata `huggingface` do not describe the column {column!r}"
        ) from None
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"its metadata `huggingface` have no list of names: {names!r:.80}")
    return names


def _is_binary(kind: pa.DataType) -> bool:
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_texts(kind: pa.DataType) -> bool:
    return (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _is_text(kind.value_type)


def _named(file: Path, error: Exception) -> ValueError:
    """Return an error that names the file, and says that it is damaged if pyarrow says so."""
    if isinstance(error, (pa.ArrowException, OSError)):
        text = " ".join(str(error).split())
        return ValueError(f"{file} is no Parquet file, or damaged: {text}")
    return ValueError(f"{file}: {error}")
