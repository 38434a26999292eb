"""Whether a file of ours still is what was written: each carries the digest of its own bytes.

What is decided here holds for every file that one part of the pipeline writes and another reads.

*What a file carries.* A seal: `mar-sha256:` and the SHA-256 of the whole file, taken with the 64
digits of the seal as zeros. It stands inside the file, where the format has room for remarks: the
schema's metadata (Arrow, Parquet), the description (safetensors), the key `seal` (JSON). So file
and digest cannot be separated, other programs read the file as before, and the same content gives
the same bytes. (A checkpoint is a folder, whose sealed `checkpoint.json` holds the digests of the
other files: `mar.training.checkpoints`.)

*Who compares it.* Whoever opens a file, before anything of it is used (`check`). Every byte counts,
those of names, padding and the seal as well, so a changed bit is found wherever it is. A file that
cannot be checked is not used: in `out/` it ends the stage, in `work/` it is made again.

*What it costs.* A file is read once, in pieces that are hashed in threads: 2 GB/s for each core
with SHA instructions, so 21 GB of latents take as long as the disk takes to read them, once at the
start of a training of days, and are in the system's cache afterwards.

Not sealed are files for people and other programs (pictures, curves, `metrics.json`), which no
stage reads, and `classes.json`, a plain list of names that is compared with the manifest's.
"""

import hashlib
import os
import re
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from mar.files import atomic


KEY = "seal"  # in the metadata of every format
MARK = "mar-sha256:"
DIGITS = 64
BLANK = MARK + DIGITS * "0"  # what a file is written with, before its digest is known
PIECE = 1 << 24  # bytes hashed at a time; a seal is within the first or the last of a file
THREADS = 16

_SEAL = re.compile(rf"{MARK}([0-9a-f]{{{DIGITS}}})".encode())


class DamagedFileError(ValueError):
    """A file is not what was written; `path` says which."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} {reason}")
        self.path, self._reason = path, reason

    def __reduce__(self) -> tuple[type["DamagedFileError"], tuple[Path, str]]:
        return type(self), (self.path, self._reason)  # other processes get it too


@contextmanager
def sealing(path: Path) -> Generator[Path, None, None]:
    """Yield a path to write a file with a blank seal to; sealed, it takes the place of `path`."""
    with atomic.replacing(path) as partial:
        yield partial
        _stamp(partial)


def check(path: Path) -> None:
    """Compare a file with its seal.

    Raises:
        DamagedFileError: it is another file than was written.
        ValueError: there is none.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing; the stage that makes it has not run")
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            seals = _find(file.fileno(), size)
            found = _hash(file.fileno(), size, list(seals)) if seals else ""
    except OSError as error:  # of a failing disk it has no name
        raise OSError(f"{path} cannot be read: {error.strerror or error}") from None
    if not size:
        raise DamagedFileError(path, "is damaged: it is empty")
    if not seals:
        raise DamagedFileError(
            path,
            f"holds no digest of its content ({MARK}...), which every file of this project has: it "
            "is damaged, or another version or program wrote it",
        )
    expected = sorted(set(seals.values()))
    if expected != [found]:
        raise DamagedFileError(
            path,
            f"is damaged: its content has the SHA-256 {found}, expected {' and '.join(expected)} "
            "as when it was written",
        )


def digest(path: Path) -> str:
    """Return the SHA-256 of a file that is what was written: its name in what is made of it.

    Raises:
        ValueError: it is damaged or missing.
    """
    check(path)
    return atomic.digest(path)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write the keys and values of a mapping as readable JSON, and its seal as the last key."""
    with sealing(path) as partial:
        partial.write_text(atomic.to_json({**value, KEY: BLANK}), encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote, without its seal.

    Raises:
        ValueError: the file is missing, damaged or no JSON.
    """
    check(path)
    value: object = atomic.read_json(path)
    if not isinstance(value, dict):
        raise DamagedFileError(path, "does not hold keys and values")
    content = cast(dict[str, Any], value)
    return {key: content[key] for key in content if key != KEY}


def _stamp(path: Path) -> None:
    """Put a file's digest in the place of its blank seals."""
    with path.open("rb+", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        seals = _find(file.fileno(), size)
        assert seals
        assert set(seals.values()) == {DIGITS * "0"}
        digits = _hash(file.fileno(), size, list(seals)).encode()
        for start in seals:
            os.pwrite(file.fileno(), digits, start)


def _find(file: int, size: int) -> dict[int, str]:
    """Return where the digits of a file's seals begin, and what they are."""
    found: dict[int, str] = {}
    for start in {0, max(0, size - PIECE)}:
        for match in _SEAL.finditer(os.pread(file, PIECE, start)):
            found[start + match.start(1)] = match[1].decode()
    return found


def _hash(file: int, size: int, blanks: list[int]) -> str:
    """Return the SHA-256 of the SHA-256 of all pieces; from each place in `blanks` on are zeros."""

    def hash_piece(start: int) -> bytes:
        piece = bytearray(os.pread(file, PIECE, start))
        for place in blanks:
            first, last = max(place - start, 0), min(place + DIGITS - start, len(piece))
            if first < last:
                piece[first:last] = (last - first) * b"0"
        return hashlib.sha256(piece).digest()

    whole = hashlib.sha256()
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        for part in pool.map(hash_piece, range(0, size, PIECE)):
            whole.update(part)
    return whole.hexdigest()
