"""Shards in a folder: their files, their splits, and what is known of them from earlier starts."""
# pyarrow has no types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

import hashlib
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from mar.data.manifest import Split
from mar.files import seal
from mar.sources.checked_files import SETTLED
from mar.sources.folder_entries import Skipped, entries, require_text, show
from mar.sources.split_names import Role, role


class Shard(NamedTuple):
    """A shard: path relative to the data folder, and split where its name has one."""

    path: str
    split: Split | None


@dataclass
class ShardListing:
    """What a folder of shards holds, sorted by path.

    Attributes:
        shards: The shards.
        left_alone: Paths of shards of a test split.
        ignored: Paths of other files.
    """

    shards: list[Shard] = field(default_factory=list[Shard])
    left_alone: list[str] = field(default_factory=list[str])
    ignored: list[str] = field(default_factory=list[str])

    @property
    def has_held_out(self) -> bool:
        """Whether the names say which images are held out."""
        return any(shard.split == "held_out" for shard in self.shards)

    def remarks(self) -> list[str]:
        """Say what was passed over."""
        found: list[str] = []
        if self.left_alone:
            found.append(
                f"{len(self.left_alone)} shards of a test split are left alone, as "
                f"{show(self.left_alone[0])}"
            )
        if self.ignored:
            kinds = Counter(PurePosixPath(path).suffix or "no extension" for path in self.ignored)
            counts = ", ".join(f"{count} {show(kind)}" for kind, count in kinds.most_common(5))
            found.append(
                f"ignored {len(self.ignored)} files that are no shards by their names ({counts}), "
                f"as {show(self.ignored[0])}"
            )
        return found


def list_shards(root: Path, ending: str, packed: tuple[str, ...] = ()) -> ShardListing:
    """List the shards of a folder, at any depth, without opening them.

    A shard belongs to the split whose name is a word of its own name, or else of the nearest folder
    around it: `train-00000-of-00294.parquet`, `imagenet1k-validation-03.tar`, `train/0000.parquet`.
    Those of a test split are left alone. Capitals do not matter; hidden files are skipped.

    Args:
        root: The folder.
        ending: What the names of shards end in.
        packed: Endings of shards that are compressed as a whole, which are refused.

    Raises:
        ValueError: the folder is missing or holds no shards of training, a shard is no file, a name
            has two splits, or some shards have one and others have none.
    """
    try:
        require_text(root)
        if not root.is_dir():
            reason = "is not a folder" if root.exists() else "does not exist"
            raise ValueError(f"{root} {reason}, expected a folder of {ending} files")
        return _list(root, ending, packed)
    except ValueError as error:
        raise ValueError(f"data.path: {error}") from None


def _list(root: Path, ending: str, packed: tuple[str, ...]) -> ShardListing:
    listing = ShardListing()
    roles: dict[str, Role | None] = {}
    for path in _walk(root, ""):
        name = path.lower()
        if name.endswith(ending):
            require_text(root / path)
            _require_file(root / path)
            roles[path] = _role(root, path)
        elif name.endswith(packed):
            raise ValueError(
                f"{root / path} is compressed, so that images cannot be read out of its middle; "
                f"expected plain {ending} files (unpack it with gunzip or the like)"
            )
        else:
            listing.ignored.append(path)
    if not roles:
        other = f", but {show(listing.ignored[0])}" if listing.ignored else ""
        raise ValueError(f"{root} holds no {ending} files{other}")
    listing.left_alone = [path for path, kind in roles.items() if kind == "test"]
    used = {path: kind for path, kind in roles.items() if kind != "test"}
    named = [path for path, kind in used.items() if kind is not None]
    if named and (bare := [path for path, kind in used.items() if kind is None]):
        raise ValueError(
            f"{root} holds {show(named[0])}, whose name has a split, and {show(bare[0])}, whose "
            "name has none; expected train, and val or validation, in each or in none"
        )
    if "train" not in used.values() and (named or not used):
        raise ValueError(f"{root} holds {show(next(iter(roles)))}, but no shards of training")
    listing.shards = [Shard(path, kind) for path, kind in roles.items() if kind != "test"]
    return listing


def _walk(root: Path, prefix: str) -> Iterator[str]:
    for name, is_folder in entries(root, prefix, Skipped()):
        if is_folder:
            yield from _walk(root, f"{prefix}{name}/")
        else:
            yield prefix + name


def _require_file(path: Path) -> None:
    """Refuse what is no file: opening a pipe or reading a device may never end."""
    if not path.is_file():
        raise ValueError(f"{path} is no file, but a pipe, socket, device or a link to nothing")


def _role(root: Path, path: str) -> Role | None:
    for part in reversed(path.split("/")):
        words: list[str] = re.findall(r"[^\W\d_]+", part)
        found: list[Role] = [kind for word in words if (kind := role(word)) is not None]
        if len(set(found)) > 1:
            raise ValueError(f"{root / path}: its name has two splits, expected one of them")
        if found:
            return found[0]
    return None


class Memory:
    """What was found in shards, kept so that only new and changed ones are read again.

    One sealed Parquet file for each shard, so that a start that was killed goes on with the next.
    """

    def __init__(self, folder: Path, root: Path, reader: str) -> None:
        """Keep what is found below `root` in `folder`.

        Args:
            folder: Where to keep it.
            root: The data folder.
            reader: What decides what is found in a shard, apart from the shard.
        """
        self._folder = folder / f"{_digest(str(root.absolute()))}.shards"
        self._reader = reader

    def load(self, shard: str, state: str) -> pa.Table | None:
        """Return what was found in a shard, if that was with this reader and the same file."""
        place = self._place(shard)
        if not place.is_file():
            return None
        try:
            seal.check(place)
        except (ValueError, OSError):
            return None
        table = pq.read_table(place)
        described = table.schema.metadata
        known = (described[b"reader"].decode(), described[b"state"].decode())
        return table if known == (self._reader, state) else None

    def save(self, shard: str, state: str, table: pa.Table) -> None:
        """Keep what was found in a shard."""
        described = {**table.schema.metadata, "reader": self._reader, "state": state}
        table = table.replace_schema_metadata(described)
        place = self._place(shard)
        with seal.sealing(place) as partial, pq.ParquetWriter(partial, table.schema) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({seal.KEY: seal.BLANK})

    def forget_others(self, shards: Sequence[str]) -> None:
        """Remove what is known of shards that are no more."""
        kept = {self._place(shard).name for shard in shards}
        for file in self._folder.glob("*.parquet"):
            if file.name not in kept:
                file.unlink(missing_ok=True)

    def _place(self, shard: str) -> Path:
        return self._folder / f"{_digest(shard)}.parquet"


def state_of(file: Path) -> str:
    """Return what changes when a file does: its size and times.

    Of a file that changed so shortly before that it may change again without its times telling, the
    state holds the present time, so that it equals no other.
    """
    described = file.stat()
    times = f"{described.st_size} {described.st_mtime_ns} {described.st_ctime_ns}"
    now = time.time_ns()
    return times if described.st_ctime_ns + SETTLED < now else f"{times} {now}"


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:16]
