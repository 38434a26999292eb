"""The tokens of all captions of a data set, and which captions each image has, in Arrow files.

`captions.arrow` has a row for each caption, which several images may share: its text and its
tokens. `images.arrow` has a row for each image in the order of the manifest: its name, its split,
and the numbers of its captions.

Shapes: B images, N captions, K tokens of a caption.
"""
# pyarrow has no types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from pyarrow import ipc
from torch import Tensor

from mar.files import seal
from mar.files.arrow import open_arrow
from mar.text.encoder import TextEncoder


class CaptionedImages(NamedTuple):
    """Images of a split: their names, and the captions of each."""

    names: Sequence[str]
    captions: Sequence[Sequence[str]]


def write_texts(
    folder: Path, encoder: TextEncoder | None, splits: Mapping[str, CaptionedImages]
) -> None:
    """Write both files; without an encoder, they have no rows.

    Args:
        folder: Where they are to be.
        encoder: Makes the tokens.
        splits: The images of each split.
    """
    numbers: dict[str, int] = {}
    names: list[str] = []
    chosen: list[list[int]] = []
    for images in splits.values():
        names += images.names
        for captions in images.captions:
            chosen.append([numbers.setdefault(text, len(numbers)) for text in captions])
    counts = [len(images.names) for images in splits.values()]
    of_split = [split for split, count in zip(splits, counts, strict=True) for _ in range(count)]
    tokens = [] if encoder is None else [encoder.tokenise(text)[0] for text in numbers]
    _write(
        folder / "captions.arrow",
        {
            "caption": pa.array(list(numbers), pa.string()),
            "tokens": pa.array(tokens, pa.list_(pa.int32())),
        },
    )
    _write(
        folder / "images.arrow",
        {
            "name": pa.array(names, pa.string()),
            "split": pa.array(of_split, pa.string()),
            "captions": pa.array(chosen, pa.list_(pa.int32())),
        },
    )


def _write(path: Path, columns: dict[str, pa.Array]) -> None:
    batch = pa.record_batch(columns, metadata={seal.KEY: seal.BLANK})
    with seal.sealing(path) as unfinished, ipc.new_file(str(unfinished), batch.schema) as writer:
        writer.write_batch(batch)


class TextCache:
    """The captions of the images to train on, as tokens.

    Attributes:
        names: The name of each image.
        held_out: A caption of each image that is held out: its first.

    Raises:
        ValueError: a file is missing or damaged.
    """

    def __init__(self, folder: Path, count: int) -> None:
        """Open a cache; of each caption, the first `count` tokens are used."""
        captions, images = (_read(folder / f"{name}.arrow") for name in ("captions", "images"))
        is_train = np.array([split == "train" for split in images["split"].to_pylist()], bool)
        chosen = images.filter(pa.array(is_train))
        self.names: list[str] = chosen["name"].to_pylist()
        self._captions = _ragged(chosen["captions"])
        self._tokens = _padded(*_ragged(captions["tokens"]), count)
        texts = captions["caption"]
        numbers = images.filter(pa.array(~is_train))["captions"].to_pylist()
        self.held_out: list[str] = [texts[each[0]].as_py() for each in numbers]

    def tokens(self, images: Int[Tensor, " B"], chance: Float[Tensor, " B"]) -> Int[Tensor, "B K"]:
        """Return the tokens of a caption of each image.

        Args:
            images: Their numbers.
            chance: For each a number from 0 to 1, which chooses among its captions.
        """
        values, starts = self._captions
        first, last = starts[images], starts[images + 1]
        place = first + (chance * (last - first)).long().clamp(max=last - first - 1)
        return self._tokens[values[place]]


def _read(path: Path) -> pa.Table:
    seal.check(path)
    return open_arrow(path).read_all()


def _ragged(column: pa.ChunkedArray) -> tuple[Int[Tensor, " _"], Int[Tensor, " _"]]:
    """Return all values of lists, one list behind the other, and where each begins."""
    lists = column.combine_chunks()
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    starts = torch.from_numpy(np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))
    return torch.from_numpy(lists.flatten().to_numpy().astype(np.int64)), starts


def _padded(values: Int[Tensor, " _"], starts: Int[Tensor, " _"], count: int) -> Int[Tensor, "N K"]:
    """Return the first `count` values of each list, with zeros behind the last."""
    place = starts[:-1, None] + torch.arange(count)  # (N, K)
    exists = place < starts[1:, None]
    padded = torch.cat([values, values.new_zeros(1)])[place.clamp(max=len(values))]
    return padded * exists
