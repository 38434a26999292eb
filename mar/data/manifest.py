"""The manifest: a Parquet file that lists the images of a data set with their labels and splits.

Columns: `path` (relative to the data folder), `image` (the file's content, null where it stays in
the folder), `label`, `bytes` (the file's size), `sha256` (of its content), `split`. The classes'
names are in the schema's metadata. Where the folder lies is not: the same images make the same
manifest anywhere.
"""

# pyarrow has no type stubs, so everything that it returns is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Int64
from torch import Tensor

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


class Row(NamedTuple):
    """One image of a manifest; the fields are the columns, `size` that of the file in bytes."""

    path: str
    image: bytes | None
    label: int
    size: int
    sha256: bytes
    split: Split


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

    def paths(self) -> list[str]:
        """Return the paths of all rows."""
        return self._rows["path"].to_pylist()

    def path(self, index: int) -> str:
        """Return the path of a row."""
        return self._rows["path"][index].as_py()

    def image(self, index: int) -> bytes | None:
        """Return the file content that the manifest holds for a row, if it does."""
        return self._rows["image"][index].as_py()

    def size(self, index: int) -> int:
        """Return the size of a row's file in bytes."""
        return self._rows["bytes"][index].as_py()

    def sha256(self, index: int) -> bytes:
        """Return the digest of a row's image."""
        return self._rows["sha256"][index].as_py()


def write_manifest(path: Path, class_names: Sequence[str], rows: Sequence[Row]) -> None:
    """Write a manifest in one piece; the same rows make the same bytes, with one pyarrow."""
    columns = list(zip(*rows, strict=True)) or [()] * len(COLUMNS)
    table = pa.table(
        [pa.array(values, kind) for values, kind in zip(columns, COLUMNS.types, strict=True)],
        schema=COLUMNS.with_metadata({"class_names": json.dumps(list(class_names))}),
    )
    with seal.sealing(path) as partial, pq.ParquetWriter(partial, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({seal.KEY: seal.BLANK})
