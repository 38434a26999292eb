"""What is noted of each image in a shard, and what is made of the notes of all shards.

Kept in columns: a data set has a million images.

Shapes: N images in all shards.
"""
# pyarrow has no types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow.compute import call_function

from mar.data.decoding import inspect
from mar.data.manifest import CAPTIONED_SHARD_COLUMNS, SHARD_COLUMNS, Rows
from mar.sources import doubts
from mar.sources.captions import CLASS
from mar.sources.image_folder import in_order


Values = np.ndarray[Any, np.dtype[Any]]

COLUMNS = pa.schema(
    [
        ("name", pa.string()),
        ("label", pa.string()),
        ("size", pa.int64()),
        ("sha256", pa.binary(32)),
        ("fault", pa.string()),
        ("too_large", pa.bool_()),
        ("sixteen_bits", pa.bool_()),
        ("brightest", pa.float64()),
        ("offset", pa.int64()),
        ("stored", pa.int64()),
        ("codec", pa.string()),
        ("unpacked", pa.int64()),
        ("begin", pa.int64()),
        ("captions", pa.list_(pa.string())),
        ("unused", pa.string()),
    ]
)
BATCH = 4096  # notes that are Python objects at a time
MOST_NAMES = 8  # of what is not used
AMPLIFIED = 8  # times as many bytes to unpack as an image has, from which on it is said


class Noted(NamedTuple):
    """What was found of an image in a shard; the columns, see `Checked` and `Place`.

    Those of its captions may be empty. `unused` says what else there is of it, joined by commas.
    """

    name: str
    label: str | None
    size: int
    sha256: bytes
    fault: str | None
    too_large: bool = False
    sixteen_bits: bool = False
    brightest: float = 0.0
    offset: int = 0
    stored: int = 0
    codec: str | None = None
    unpacked: int = 0
    begin: int = 0
    captions: Sequence[str] | None = None
    unused: str = ""


def broken(name: str, fault: str) -> Noted:
    """Return what is noted of what is no image."""
    return Noted(name, None, 0, bytes(32), fault)


def note(name: str, label: str | None, content: bytes, max_pixels: int) -> Noted:
    """Decode an image; its place is still to be noted."""
    sha256 = hashlib.sha256(content).digest()
    return Noted(name, label, len(content), sha256, *inspect(content, max_pixels))


def to_table(noted: Iterable[Noted], class_names: Sequence[str] | None) -> pa.Table:
    """Return the notes of a shard, and the names of all classes, where the shard has them."""
    noted = iter(noted)
    batches: list[pa.RecordBatch] = []
    while part := list(islice(noted, BATCH)):
        columns = zip(*part, strict=True)
        pairs = zip(columns, COLUMNS.types, strict=True)
        arrays = [pa.array(values, kind) for values, kind in pairs]
        batches.append(pa.record_batch(arrays, schema=COLUMNS))
    table = pa.Table.from_batches(batches, COLUMNS)
    return table.replace_schema_metadata({"class_names": json.dumps(class_names)})


def any_too_large(table: pa.Table) -> bool:
    """Tell whether an image of a shard had too many pixels."""
    return bool(table["too_large"].to_numpy().any())


class Notes:
    """The notes of all shards.

    Attributes:
        shard_of: The index of each image's shard, int32 (N,).
    """

    def __init__(self, shards: Sequence[str], tables: Sequence[pa.Table]) -> None:
        self._shards = list(shards)
        self._names = [json.loads(table.schema.metadata[b"class_names"]) for table in tables]
        self._table = pa.concat_tables([table.replace_schema_metadata(None) for table in tables])
        self._table = self._table.combine_chunks()
        lengths = [table.num_rows for table in tables]
        self.shard_of: Values = np.repeat(np.arange(len(tables), dtype=np.int32), lengths)

    def __len__(self) -> int:
        return self._table.num_rows

    def class_names(self) -> list[str] | None:
        """Return the names of the classes that all shards have.

        Raises:
            ValueError: shards have other names than the first has.
        """
        for shard, names in zip(self._shards, self._names, strict=True):
            if names != self._names[0]:
                raise ValueError(
                    f"{shard} has {_describe(names)}, expected {_describe(self._names[0])} as in "
                    f"{self._shards[0]}"
                )
        return self._names[0]

    def too_large(self) -> dict[str, str]:
        """Return the images that have too many pixels: path -> how many."""
        chosen = np.flatnonzero(self._column("too_large")).tolist()
        return {self._path(at): self._table["fault"][at].as_py() for at in chosen}

    def label(self, names: Sequence[str] | None) -> tuple[list[str], Values, dict[str, str]]:
        """Number the labels.

        Where all labels are whole numbers and names are given, they are the numbers of those names;
        other labels are names themselves. Without names, a class is numbered by the rank of its
        label, as the folders of images are.

        Returns:
            The name of each class; the number of each image's class, int64 (N,), or -1 where it
            cannot be used; and why it cannot: path -> reason.

        Raises:
            ValueError: labels are names, and two classes share one.
        """
        encoded = self._table["label"].combine_chunks().dictionary_encode()
        texts: list[str] = encoded.dictionary.to_pylist()
        numeric = all(re.fullmatch(r"-?[0-9]+", text) for text in texts)
        if names is None:
            names = in_order([text for text in texts if not (numeric and text.startswith("-"))])
            known = {name: at for at, name in enumerate(names)}
            expected = "a number from 0"
        elif numeric:
            known = {text: int(text) for text in texts if 0 <= int(text) < len(names)}
            expected = f"a number from 0 to {len(names) - 1}"
        else:
            known = {name: at for at, name in enumerate(names)}
            if len(known) < len(names):  # fine for numbers: ImageNet has two classes `crane`
                double = next(name for at, name in enumerate(names) if known[name] != at)
                raise ValueError(f"two classes are called {double!r}, and labels are names here")
            expected = f"one of the {len(names)} class names"
        numbers = np.array([*(known.get(text, -1) for text in texts), -1], np.int64)
        chosen = encoded.indices.fill_null(len(texts)).to_numpy(zero_copy_only=False)
        is_faulty = self._table["fault"].is_valid().to_numpy()
        labels = np.where(is_faulty, -1, numbers[chosen])
        unreadable: dict[str, str] = {}
        for at in np.flatnonzero(labels < 0).tolist():
            reason = self._table["fault"][at].as_py()
            if reason is None and chosen[at] == len(texts):
                reason = "it has no label"
            elif reason is None:
                reason = f"its label is {texts[chosen[at]]!r}, expected {expected}"
            unreadable[self._path(at)] = reason
        return list(names), labels, unreadable

    def label_captioned(self) -> tuple[list[str], Values, dict[str, str]]:
        """Give one class to all images that have a caption; returns what `label` does."""
        of_image, texts = self._captions()
        has_caption = np.zeros(len(self), bool)
        has_caption[of_image[_is_said(texts)]] = True
        is_faulty = self._table["fault"].is_valid().to_numpy()
        labels = np.where(has_caption & ~is_faulty, 0, -1)
        unreadable = {
            self._path(at): self._table["fault"][at].as_py() or "it has no caption"
            for at in np.flatnonzero(labels < 0).tolist()
        }
        return [CLASS], labels, unreadable

    def with_empty_caption(self) -> list[str]:
        """Return the paths of the images that have an empty caption."""
        of_image, texts = self._captions()
        return [self._path(at) for at in np.unique(of_image[~_is_said(texts)]).tolist()]

    def remarks(self) -> list[str]:
        """Say what of the samples or rows is not used, a sentence each."""
        columns = [text for text in self._table["unused"].unique().to_pylist() if text]
        names = sorted({name for text in columns for name in text.split(", ")})
        if not names:
            return []
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        return [f"not used of what there is beside images: {', '.join(names[:MOST_NAMES])}{more}"]

    def rows(self, labels: Values, held_out: Values, *, captions: bool) -> Rows:
        """Return the rows of the images that have a label, with their captions or without."""
        usable = np.flatnonzero(labels >= 0)
        table = self._table.take(pa.array(usable))
        shard_of = pa.array(self.shard_of[usable])
        shard = pa.DictionaryArray.from_arrays(shard_of, pa.array(self._shards, pa.string()))
        splits = pa.array(["train", "held_out"])
        columns = {
            "path": call_function(
                "binary_join_element_wise",
                [shard.dictionary_decode(), table["name"], pa.scalar("/")],
            ),
            "image": pa.nulls(len(usable), pa.binary()),
            "label": pa.array(labels[usable], pa.int32()),
            "bytes": table["size"],
            "split": splits.take(pa.array(held_out[usable].astype(np.int8))),
            "shard": shard,
            "codec": table["codec"].combine_chunks().dictionary_encode(),
        }
        schema = SHARD_COLUMNS
        if captions:
            schema = CAPTIONED_SHARD_COLUMNS
            columns["captions"] = self._said(usable)
        arrays = [columns[name] if name in columns else table[name] for name in schema.names]
        return Rows(pa.table(arrays, schema=schema))

    def doubts(self, labels: Values) -> list[str]:
        """Say what of the images that have a label is likely a mistake, a sentence each."""
        usable = labels >= 0
        brightest = self._column("brightest")[usable]
        found = doubts.dim(brightest, self._column("sixteen_bits")[usable], len(self))
        size, unpacked = self._column("size")[usable].sum(), self._column("unpacked")[usable].sum()
        if unpacked > AMPLIFIED * size:
            found.append(
                f"to read one image, {unpacked / usable.sum() / 1e6:.1f} MB must be unpacked, "
                f"{unpacked / size:.0f} times its size; files written without compression, or by "
                "Snappy, are read at random much faster"
            )
        return found

    def _captions(self) -> tuple[Values, pa.Array]:
        """Return the index of each caption's image, and the captions."""
        captions = self._table["captions"].combine_chunks()
        of_image = call_function("list_parent_indices", [captions]).to_numpy()
        return of_image, call_function("list_flatten", [captions])

    def _said(self, images: Values) -> pa.Array:
        """Return the captions of some images, but for empty ones."""
        of_image, texts = self._captions()
        said = _is_said(texts)
        counts = np.bincount(of_image[said], minlength=len(self))
        kept = np.zeros(len(self), bool)
        kept[images] = True
        texts = texts.filter(pa.array(said & kept[of_image]))
        offsets = np.concatenate([[0], np.cumsum(counts[images])]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), texts)

    def _column(self, name: str) -> Values:
        return self._table[name].to_numpy()

    def _path(self, at: int) -> str:
        return f"{self._shards[self.shard_of[at]]}/{self._table['name'][at].as_py()}"


def _is_said(texts: pa.Array) -> Values:
    """Tell which captions are not empty."""
    return call_function("not_equal", [texts, pa.scalar("")]).to_numpy(zero_copy_only=False)


def _describe(names: Sequence[str] | None) -> str:
    return "no class names" if names is None else f"{len(names)} class names ({names[0]!r}, ...)"
