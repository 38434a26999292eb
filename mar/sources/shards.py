"""What the data sources `parquet` and `webdataset` share: images within shards, listed once.

Each shard is read from its beginning to its end, by one of the worker processes: every image is
decoded, and noted with its place, size and digest. Later on images are read one by one, in whatever
order, by what is noted.
"""
# pyarrow has no types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from tqdm import tqdm

from mar.config import PathText
from mar.data.held_out import hold_out
from mar.data.reading import read_file
from mar.data.workers import map_chunks
from mar.sources import captions, doubts, shard_files, shard_notes
from mar.sources.caption_report import caption_remarks, caption_warnings
from mar.sources.checked_files import reader
from mar.sources.shard_files import Memory, Shard, ShardListing, list_shards, state_of
from mar.sources.shard_notes import Noted, Notes, Values
from mar.sources.source import Collection, DataSource, Surroundings
from mar.sources.unreadable import Wording, left_out, require_few, require_small


MODULES = (
    captions,
    shard_files,
    shard_notes,
)  # whose code decides what is noted, beside that of the kind

USABLE = Wording("images", "used")


class ShardData(DataSource):
    """Images of any size in shards.

    Attributes:
        ending: What the names of shards end in.
        packed: Endings of compressed shards.
        modules: Whose code reads them, beside that of the class itself.
    """

    ending: ClassVar[str]
    packed: ClassVar[tuple[str, ...]] = ()
    modules: ClassVar[tuple[ModuleType, ...]]

    path: PathText = Field(description="the folder of shards, absolute or from the repository")
    image_size: int = Field(
        gt=0, le=16_384, description="side of the square cut from each image, in pixels"
    )
    class_names: str | None = Field(
        min_length=1,
        description="a file in that folder with a class name on each line, in the order of the "
        "labels' numbers; null: the names in the data, else the labels themselves, or no classes",
    )
    held_out_fraction: float = Field(
        gt=0, lt=1, description="share of each class not trained on, unless there are shards of val"
    )
    max_unreadable: int = Field(
        ge=0,
        description="images that may be left out: they cannot be decoded, or have no label, or no "
        "caption",
    )
    seed: int = Field(ge=0, description="chooses the images that are held out")

    def note(self, file: Path, max_pixels: int) -> tuple[Iterable[Noted], list[str] | None]:
        """Read a shard; return its images one after another, and the names of all classes if known.

        Raises:
            ValueError: the file is damaged as a whole, or lacks what is expected in it; the message
                begins with its path.
        """
        raise NotImplementedError

    @property
    def reading(self) -> dict[str, str | None]:
        """What of this section decides what is found in a shard."""
        raise NotImplementedError

    def collect(self, surroundings: Surroundings) -> Collection:
        """Find and check the images of all shards, and assign them to splits.

        Raises:
            ValueError: the folder holds no shards or shards and names do not fit together, a shard
                is damaged, an image has too many pixels, more images than `data.max_unreadable`
                cannot be used, or a class has no image to train on.
        """
        root = surroundings.base / Path(self.path).expanduser()
        listing = list_shards(root, self.ending, self.packed)
        tables, num_read = self._note_all(root, listing.shards, surroundings)
        notes = Notes([shard.path for shard in listing.shards], tables)
        large = notes.too_large()
        require_small(root, large, len(notes), surroundings.max_pixels, USABLE)
        captioned = self.has_captions
        class_names, labels, unreadable = (
            notes.label_captioned() if captioned else notes.label(self._names(root, notes))
        )
        require_few(root, unreadable, len(notes), self.max_unreadable, USABLE)
        held_out = self._held_out(listing, notes, labels)
        _require_every_class(root, class_names, labels[(labels >= 0) & ~held_out])
        _require_both(root, held_out, listing)
        rows = notes.rows(labels, held_out, captions=captioned)
        return Collection(
            class_names,
            rows,
            unreadable,
            remarks=[
                *listing.remarks(),
                *notes.remarks(),
                *left_out(unreadable, len(notes), USABLE),
                *caption_remarks(rows),
            ],
            warnings=[
                *([] if captioned else doubts.sizes(class_names, rows)),
                *(caption_warnings(notes.with_empty_caption(), rows) if captioned else []),
                *notes.doubts(labels),
                *_not_held_out(class_names, labels[held_out], listing),
            ],
            num_read=num_read,
            num_known=len(tables) - num_read,
        )

    def require_one(self, label: str, caption: str) -> None:
        """Refuse a section that names neither of these keys, or both, or classes without labels.

        Raises:
            ValueError: it does.
        """
        if (getattr(self, label) is None) == (getattr(self, caption) is None):
            raise ValueError(f"one of {label} and {caption} must be null, and the other must not")
        if self.has_captions and self.class_names is not None:
            raise ValueError(f"class_names must be null where {label} is")

    def _held_out(self, listing: ShardListing, notes: Notes, labels: Values) -> Values:
        """Tell of each image whether it is held out: as the shards say, or drawn at random."""
        usable = labels >= 0
        if listing.has_held_out:
            of_shards = np.array([shard.split == "held_out" for shard in listing.shards])
            return usable & of_shards[notes.shard_of]
        drawn = hold_out(torch.from_numpy(labels[usable]), self.held_out_fraction, self.seed)
        held_out = np.zeros(len(labels), bool)
        held_out[usable] = drawn.numpy()
        return held_out

    def _names(self, root: Path, notes: Notes) -> list[str] | None:
        """Return the names of all classes, where the data or the user know them."""
        if self.class_names is None:
            return notes.class_names()
        file = root / self.class_names
        try:
            names = read_file(file)[0].decode().splitlines()
        except ValueError as error:
            raise ValueError(f"data.class_names: {file} cannot be read: {error}") from None
        _require_names(names, f"data.class_names: {file}")
        return names

    def _note_all(
        self, root: Path, shards: Sequence[Shard], surroundings: Surroundings
    ) -> tuple[list[pa.Table], int]:
        """Return what is noted of each shard, and how many were read: new and changed ones."""
        kept = surroundings.kept
        memory = None if kept is None else Memory(kept, root, self._reader())
        states = {shard.path: state_of(root / shard.path) for shard in shards}
        found: dict[str, pa.Table] = {}
        for path, state in states.items():
            table = None if memory is None else memory.load(path, state)
            if table is not None and not shard_notes.any_too_large(table):
                found[path] = table
        unknown = [path for path in states if path not in found]
        work = partial(self._note, root, unknown, surroundings.max_pixels)
        sizes = {path: (root / path).stat().st_size for path in unknown}
        with tqdm(
            total=sum(sizes.values()),
            desc="check",
            unit="B",
            unit_scale=True,
            disable=not unknown,
        ) as progress:
            results = map_chunks(
                work,
                [[at] for at in range(len(unknown))],
                surroundings.workers,
                patience=86_400.0,  # one archive may be all of ImageNet
            )
            for path, table in zip(unknown, results, strict=True):
                found[path] = table
                if memory is not None:
                    memory.save(path, states[path], table)
                progress.update(sizes[path])
        if memory is not None:
            memory.forget_others(list(states))
        return [found[shard.path] for shard in shards], len(unknown)

    def _reader(self) -> str:
        """Return what decides what is noted of a shard, apart from the shard."""
        own = sys.modules[type(self).__module__]
        files = (__file__, *(module.__file__ for module in (own, *MODULES, *self.modules)))
        return f"{reader(*map(str, files))} {self.reading}"

    def _note(self, root: Path, shards: list[str], max_pixels: int, chosen: list[int]) -> pa.Table:
        (index,) = chosen
        noted, class_names = self.note(root / shards[index], max_pixels)
        table = shard_notes.to_table(noted, class_names)
        if not table.num_rows:
            raise ValueError(f"{root / shards[index]} holds no images")
        return table


def _require_names(names: list[str], what: str) -> None:
    """Refuse names that are empty."""
    if not names or "" in names:
        line = names.index("") + 1 if names else 1
        raise ValueError(f"{what} has no class name in line {line}, expected one on each line")


def _require_every_class(root: Path, class_names: list[str], present: Values) -> None:
    """Refuse classes of which nothing can be trained on."""
    counts = np.bincount(present, minlength=len(class_names))
    if missing := [name for name, count in zip(class_names, counts, strict=True) if not count]:
        raise ValueError(
            f"{len(missing)} of {len(class_names)} classes have no image to train on in {root}, "
            f"as {missing[0]}"
        )


def _not_held_out(class_names: list[str], held_out: Values, listing: ShardListing) -> list[str]:
    """Say which classes the shards of validation lack; of drawn images it is said already."""
    counts = np.bincount(held_out, minlength=len(class_names))
    missing = [name for name, count in zip(class_names, counts, strict=True) if not count]
    if not (missing and listing.has_held_out):
        return []
    return [f"{len(missing)} of {len(class_names)} classes have no image held out, as {missing[0]}"]


def _require_both(root: Path, held_out: Values, listing: ShardListing) -> None:
    """Refuse a data set of which nothing is held out."""
    if held_out.any():
        return
    if listing.has_held_out:
        raise ValueError(f"no image of the held_out shards in {root} can be decoded")
    raise ValueError(
        f"no image in {root} can be held out, as each class has one: give a class two or more"
    )
