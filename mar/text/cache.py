"""The captions of a data set: their texts, which of them each image has, and their tokens.

`captions.arrow` has a row for each caption, which several images may share. `images.arrow` has a
row for each image in the order of the manifest: its name, its split, and the numbers of its
captions. The tokens are in files of their own (`mar.text.token_files`), if they are kept at all.

Shapes: B images or captions, K tokens of a caption.
"""
# pyarrow has no types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int, Shaped
from pyarrow import ipc
from torch import Tensor

from mar.files import seal
from mar.files.arrow import open_arrow
from mar.text.encoder import TextEncoder
from mar.text.token_files import TokenFiles


class CaptionedImages(NamedTuple):
    """Images of a split: their names, and the captions of each."""

    names: Sequence[str]
    captions: Sequence[Sequence[str]]


def write_captions(folder: Path, splits: Mapping[str, CaptionedImages]) -> None:
    """Write both files of captions; without splits, they have no rows.

    Args:
        folder: Where they are to be.
        splits: The images of each split, those to train on first.
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
    _write(folder / "captions.arrow", {"caption": pa.array(list(numbers), pa.large_string())})
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


class Captions:
    """All captions, and which of them the images have.

    Attributes:
        names: The name of each image to train on.
        num_trained: How many captions these have; their numbers come first.

    Raises:
        ValueError: a file is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        captions, images = (_read(folder / f"{name}.arrow") for name in ("captions", "images"))
        self._texts: pa.ChunkedArray = captions["caption"]
        is_train = np.array([split == "train" for split in images["split"].to_pylist()], bool)
        trained = images.filter(pa.array(is_train))
        held_out = images.filter(pa.array(~is_train))
        self._held_out = held_out["captions"]
        self._held_out_names: list[str] = held_out["name"].to_pylist()
        self.names: list[str] = trained["name"].to_pylist()
        self._values, self._starts = _ragged(trained["captions"])
        self.num_trained = int(self._values.max()) + 1 if len(self._values) else 0

    def choose(self, images: Int[Tensor, " B"], chance: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
        """Return the number of a caption of each image.

        Args:
            images: Their numbers.
            chance: For each a number from 0 to 1, which chooses among its captions.
        """
        return _choose(self._values, self._starts, images, chance)

    def uses(self) -> Int[Tensor, " _"]:
        """Return of each caption how many images to train on have it."""
        return self._values.bincount()

    def texts(self, numbers: Int[Tensor, " B"]) -> list[str]:
        """Return captions by their numbers."""
        return self._texts.take(pa.array(numbers.numpy())).to_pylist()

    def held_out(self) -> list[str]:
        """Return a caption of each image that is held out: its first."""
        values, starts = _ragged(self._held_out)
        return self.texts(values[starts[:-1]])

    def draw_held_out(self, count: int, rng: torch.Generator) -> tuple[list[str], list[str]]:
        """Draw images that are held out, and of each a caption; return captions and images' names.

        Raises:
            ValueError: there are fewer images.
        """
        if count > (available := len(self._held_out_names)):
            raise ValueError(f"{count} images are to be drawn, and {available} are held out")
        values, starts = _ragged(self._held_out)
        images = torch.randperm(available, generator=rng)[:count]
        chance = torch.rand(count, generator=rng, dtype=torch.float64)
        chosen = _choose(values, starts, images, chance)
        return self.texts(chosen), [self._held_out_names[image] for image in images.tolist()]


class TextCache:
    """The captions of the images to train on, as tokens.

    Attributes:
        names: The name of each image.
        is_read: Whether tokens are read from files, which a thread can do ahead of time.
    """

    def __init__(
        self,
        captions: Captions,
        read: Callable[[Int[Tensor, " B"]], Shaped[Tensor, "B K ..."]],
        *,
        is_read: bool,
    ) -> None:
        """Make one of captions, and of what returns the tokens of captions by their numbers."""
        self.names = captions.names
        self.is_read = is_read
        self._captions, self._read = captions, read

    @classmethod
    def open(cls, folder: Path, encoder: TextEncoder, count: int) -> "TextCache":
        """Open the files that `encode_text` wrote.

        Args:
            folder: Where they are.
            encoder: What made the tokens; if they are in no files, it makes them in each step.
            count: Tokens of a caption that the generator takes.

        Raises:
            ValueError: a file is missing or damaged, or holds tokens of another count or encoder.
        """
        captions = Captions(folder)
        if encoder.cache is not None:
            files = TokenFiles(folder, count, encoder.identity)
            if len(files) != captions.num_trained:
                raise ValueError(
                    f"{folder} holds the tokens of {len(files)} captions, expected "
                    f"{captions.num_trained}"
                )
            return cls(captions, files.read, is_read=True)

        def encode(numbers: Tensor) -> Tensor:
            return encoder.encode(captions.texts(numbers), count)

        return cls(captions, encode, is_read=False)

    def tokens(
        self, images: Int[Tensor, " B"], chance: Float[Tensor, " B"]
    ) -> Shaped[Tensor, "B K ..."]:
        """Return the tokens of a caption of each image (`Captions.choose`)."""
        return self._read(self._captions.choose(images, chance))


def _read(path: Path) -> pa.Table:
    seal.check(path)
    return open_arrow(path).read_all()


def _choose(
    values: Int[Tensor, " _"],
    starts: Int[Tensor, " _"],
    images: Int[Tensor, " B"],
    chance: Float[Tensor, " B"],
) -> Int[Tensor, " B"]:
    """Return one of the values that each image has (`_ragged`), chosen by a number of 0 to 1."""
    first, last = starts[images], starts[images + 1]
    return values[first + (chance * (last - first)).long().clamp(max=last - first - 1)]


def _ragged(column: pa.ChunkedArray) -> tuple[Int[Tensor, " _"], Int[Tensor, " _"]]:
    """Return all values of lists, one list behind the other, and where each begins."""
    lists = column.combine_chunks()
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    starts = torch.from_numpy(np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))
    return torch.from_numpy(lists.flatten().to_numpy().astype(np.int64)), starts
