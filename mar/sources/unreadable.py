"""What to say of images that cannot be read, and when they end the collection."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from mar.sources.folder_entries import show


class Wording(NamedTuple):
    """What images are called here, and what cannot be done with some."""

    what: str
    done: str


FILES = Wording("files", "decoded")


def describe(unreadable: Mapping[str, str], most: int = 10) -> str:
    """Name the first unreadable files, one a line."""
    lines = [f"  {show(path)}: {reason}" for path, reason in list(unreadable.items())[:most]]
    if len(unreadable) > most:
        lines.append(f"  and {len(unreadable) - most} more")
    return "\n".join(lines)


def left_out(unreadable: Mapping[str, str], total: int, wording: Wording = FILES) -> list[str]:
    """Say which images are left out, if any are."""
    if not unreadable:
        return []
    return [
        f"left out {len(unreadable)} of {total} {wording.what} that cannot be {wording.done}:\n"
        f"{describe(unreadable)}"
    ]


def require_few(
    root: Path, unreadable: Mapping[str, str], total: int, most: int, wording: Wording = FILES
) -> None:
    """Refuse data of which more than `most` images cannot be decoded.

    Raises:
        ValueError: they cannot.
    """
    if len(unreadable) > most:
        raise ValueError(
            f"{len(unreadable)} of {total} {wording.what} in {root} cannot be {wording.done}, "
            f"data.max_unreadable is {most}:\n{describe(unreadable)}"
        )


def require_small(
    root: Path, too_large: Mapping[str, str], total: int, max_pixels: int, wording: Wording = FILES
) -> None:
    """Refuse images whose decoding may fill the memory, unless the user says that it will not.

    Raises:
        ValueError: there are such images.
    """
    if too_large:
        raise ValueError(
            f"{len(too_large)} of {total} {wording.what} in {root} are images of too many pixels:\n"
            f"{describe(too_large)}\n"
            f"up to MAR_MAX_PIXELS of them are read, which is {max_pixels}; each worker may need 6 "
            "bytes of memory for each pixel"
        )
