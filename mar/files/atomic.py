"""Files that are written whole or not at all, and digests that tell whether two are the same."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PROBE = 1 << 20  # bytes: a full disk may have room for a few


class UnwritableError(OSError):
    """A file cannot be written; what was there before is kept."""

    def __init__(self, path: Path, cause: OSError) -> None:
        reason = os.strerror(cause.errno) if cause.errno else str(cause)
        if cause.errno in FULL:
            free = shutil.disk_usage(path.parent).free
            reason = f"its disk is full ({reason}; {free / 1e6:.1f} MB are free)"
        super().__init__(f"{path} cannot be written: {reason}; what was there before is kept")


@contextmanager
def replacing(path: Path) -> Generator[Path, None, None]:
    """Yield a path to write to; it takes the place of `path` when the block ends without an error.

    The new content is flushed to the disk first, so after a power cut `path` holds the old content
    or the new one. A failed block leaves `path` untouched and removes what it wrote.

    Raises:
        UnwritableError: the disk is full, or refuses the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except Exception as error:
        # Each library has an error of its own for a full disk, most without file and cause.
        if (cause := _refusal(partial, error)) is None:
            raise
        raise UnwritableError(path, cause) from error
    finally:
        with suppress(OSError):  # what the block has raised says more
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in one piece."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write a value as one JSON file."""
    write_text(path, to_json(value))


def to_json(value: object) -> str:
    """Return a value as readable JSON, without NaN and infinity, on which most readers choke."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: it is missing, or no JSON; the message names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; the stage that makes it has not run") from None
    except (ValueError, RecursionError) as error:  # of the encoding as well
        raise ValueError(f"{path} is damaged, as it is not valid JSON: {error}") from None


def publish_folder(source: Path, target: Path) -> None:
    """Give a finished folder a second place, which it takes from what was there before.

    Its files are hard links, so they need no more of the disk; copies where there can be none.
    """
    partial = target.with_name(target.name + ".partial")
    for path in (partial, target):
        if path.exists():
            shutil.rmtree(path)
    partial.mkdir(parents=True)
    for path in sorted(source.rglob("*")):  # a folder comes before what is in it
        place = partial / path.relative_to(source)
        if path.is_dir():
            place.mkdir()
        else:
            _link(path, place)
    partial.replace(target)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        try:
            shutil.copy2(source, target)
        except OSError as error:
            raise UnwritableError(target, error) from error


def _refusal(partial: Path, error: Exception) -> OSError | None:
    """Return why a disk takes no more of a file, if that is what an error is about."""
    if isinstance(error, OSError) and (error.errno in FULL or error.filename == str(partial)):
        return error
    if told := re.search(r"\(os error (\d+)\)", str(error)):  # as safetensors says it
        return OSError(int(told[1]), os.strerror(int(told[1])))
    try:
        if partial.is_file():
            with partial.open("ab") as file:
                file.write(bytes(PROBE))
                file.flush()
                os.fsync(file.fileno())
    except OSError as refused:
        return refused
    return None


def digest(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def other_digest(path: Path, expected: str | None) -> str | None:
    """Return a file's digest if it is another than the expected one; without one, none is read."""
    if expected is None or (found := digest(path)) == expected.lower():
        return None
    return found
