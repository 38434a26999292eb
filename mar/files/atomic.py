"""Files that are written whole or not at all, and digests that tell whether two are the same."""

import hashlib
import json
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Generator[Path, None, None]:
    """Yield a path to write to; it takes the place of `path` when the block ends without an error.

    The new content is flushed to the disk first, so after a power cut `path` holds the old content
    or the new one. A failed block leaves `path` untouched and removes what it wrote.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in one piece."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write a value as readable JSON, without NaN and infinity, on which most readers choke."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def publish_folder(source: Path, target: Path) -> None:
    """Give a finished folder a second place, which it takes from what was there before.

    Its files are hard links, so they need no more of the disk; copies where there can be none.
    """
    partial = target.with_name(target.name + ".partial")
    for path in (partial, target):
        if path.exists():
            shutil.rmtree(path)
    shutil.copytree(source, partial, copy_function=_link)
    partial.replace(target)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def other_digest(path: Path, expected: str | None) -> str | None:
    """Return a file's digest if it is another than the expected one; without one, none is read."""
    if expected is None or (found := digest(path)) == expected.lower():
        return None
    return found
