"""The manifest: a Parquet file that lists the images of a data set with their labels and splits.

Columns: `path` (relative to the data folder), `image` (the file's content, null where it stays in
the folder), `label`, `bytes` (the file's size), `sha256` (of its content), `split`. For images in
shards (Parquet, tar), `path` is that of the shard and the name within it, and further columns, the
fields of `mar.data.shards.Place`, say where in the shard an image lies. The column
`captions`, where there are any, lists those of each image. The classes' names are in the schema's
metadata. The same images make the same manifest wherever the folder lies.
"""

# pyarrow has no type stubs, so everything that it returns is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
# pyright: reportUnknownParameterType=false

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Int64
from torch import Tensor

from mar.data.shards import Place
from mar.files import seal


Split = Literal["train", "held_out"]

COLUMNS = pa.schema(
    [
        ("path", pa.string()),
        ("image", pa.binary()),
        ("label", pa.int32()),
        ("bytes", pa.int64()),
        ("sha256", pa.binary(32)),
        ("split", pa.string()),
    ]
)
SHARD_COLUMNS = pa.schema(  # besides, where images lie in shards: the fields of `Place`
    [
        *COLUMNS,
        ("shard", pa.dictionary(pa.int32(), pa.string())),
        ("offset", pa.int64()),
        ("stored", pa.int64()),
        ("codec", pa.dictionary(pa.int32(), pa.string())),
        ("unpacked", pa.int64()),
        ("begin", pa.int64()),
    ]
)
CAPTIONS = ("captions", pa.list_(pa.string()))
CAPTIONED_COLUMNS = pa.schema([*COLUMNS, CAPTIONS])
CAPTIONED_SHARD_COLUMNS = pa.schema([*SHARD_COLUMNS, CAPTIONS])
SCHEMAS = (COLUMNS, SHARD_COLUMNS, CAPTIONED_COLUMNS, CAPTIONED_SHARD_COLUMNS)
BATCH = 1 << 16  # rows that are Python objects, or written, at a time


class Row(NamedTuple):
    """One image of a manifest; the fields are the columns, `size` that of the file in bytes."""

    path: str
    image: bytes | None
    label: int
    size: int
    sha256: bytes
    split: Split
    place: Place | None = None
    captions: tuple[str, ...] | None = None


class Rows:
    """Rows as Arrow columns, whose memory is that of their content (ImageNet: 220 MB).

    Attributes:
        table: Their columns, one of `SCHEMAS`.
    """

    def __init__(self, table: pa.Table) -> None:
        assert table.schema in SCHEMAS
        self.table = table

    @classmethod
    def collect(cls, rows: Iterable[Row]) -> "Rows":
        """Take rows one after another, as images in files of their own or within the rows have."""
        rows = iter(rows)
        batches: list[pa.RecordBatch] = []
        schema = COLUMNS
        while part := list(islice(rows, BATCH)):
            assert not any(row.place for row in part)
            columns = list(zip(*part, strict=True))[: len(COLUMNS)]
            if any(row.captions is not None for row in part):
                schema = CAPTIONED_COLUMNS
                columns.append(tuple(row.captions for row in part))
            pairs = zip(columns, schema.types, strict=True)
            arrays = [pa.array(values, kind) for values, kind in pairs]
            batches.append(pa.record_batch(arrays, schema=schema))
        return cls(pa.Table.from_batches(batches, schema=schema))

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, index: int) -> Row:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        row = {name: self.table[name][index].as_py() for name in self.table.column_names}
        path, image, label, size, sha256, split = (row[name] for name in COLUMNS.names)
        captions = row.get("captions")
        captions = None if captions is None else tuple(captions)
        return Row(path, image, label, size, sha256, split, _place(row), captions)

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rows) and self.table.equals(other.table)

    def count(self, split: Split) -> int:
        """Return the number of images of a split."""
        counts = self.table["split"].value_counts().to_pylist()
        return sum(each["counts"] for each in counts if each["values"] == split)

    def captions(self) -> list[list[str]] | None:
        """Return the captions of all rows, if images have any."""
        return _captions(self.table)

    def labels(self) -> Int64[Tensor, " N"]:
        """Return the labels of all rows."""
        return torch.tensor(self.table["label"].to_numpy(), dtype=torch.int64)


class Manifest:
    """The rows of one split, or of all, kept as Arrow columns.

    Millions of Python strings would be copied by every worker process that only looks at them.

    Attributes:
        class_names: The name of each label.
        num_all: The number of rows of all splits.

    Raises:
        ValueError: the file is missing, damaged, or no manifest.
    """

    def __init__(self, path: Path, split: Split | None = None) -> None:
        seal.check(path)
        filters = None if split is None else [("split", "=", split)]
        self._rows = pq.read_table(path, filters=filters).combine_chunks()
        self._in_shards = "shard" in self._rows.column_names
        described = pq.read_metadata(path)
        if b"class_names" not in (described.metadata or {}):
            raise ValueError(f"{path} is not a manifest: its schema lacks class_names")
        self.class_names: list[str] = json.loads(described.metadata[b"class_names"])
        self.num_all: int = described.num_rows

    def __len__(self) -> int:
        return self._rows.num_rows

    def labels(self) -> Int64[Tensor, " N"]:
        """Return the labels of all rows."""
        return torch.tensor(self._rows["label"].to_numpy(), dtype=torch.int64)

    def captions(self) -> list[list[str]] | None:
        """Return the captions of all rows, if images have any."""
        return _captions(self._rows)

    def paths(self) -> list[str]:
        """Return the paths of all rows."""
        return self._rows["path"].to_pylist()

    def path(self, index: int) -> str:
        """Return the path of a row."""
        return self._rows["path"][index].as_py()

    def image(self, index: int) -> bytes | None:
        """Return the file content that the manifest holds for a row, if it does."""
        return self._rows["image"][index].as_py()

    def place(self, index: int) -> Place | None:
        """Return where the image of a row lies, if that is in a shard."""
        if not self._in_shards:
            return None
        return _place({name: self._rows[name][index].as_py() for name in Place._fields})

    def size(self, index: int) -> int:
        """Return the size of a row's file in bytes."""
        return self._rows["bytes"][index].as_py()

    def sha256(self, index: int) -> bytes:
        """Return the digest of a row's image."""
        return self._rows["sha256"][index].as_py()


def write_manifest(path: Path, class_names: Sequence[str], rows: Rows | Iterable[Row]) -> None:
    """Write a manifest in one piece; the same rows make the same bytes, with one pyarrow."""
    table = (rows if isinstance(rows, Rows) else Rows.collect(rows)).table
    table = table.replace_schema_metadata({"class_names": json.dumps(list(class_names))})
    with seal.sealing(path) as partial, pq.ParquetWriter(partial, table.schema) as writer:
        writer.write_table(table, row_group_size=BATCH)
        writer.add_key_value_metadata({seal.KEY: seal.BLANK})


def _captions(table: pa.Table) -> list[list[str]] | None:
    return table["captions"].to_pylist() if "captions" in table.column_names else None


def _place(row: dict[str, Any]) -> Place | None:
    """Return where the image of a row lies, if that is in a shard."""
    if row.get("shard") is None:
        return None
    return Place(*(row[name] for name in Place._fields))
