"""Room on a disk, before a stage of hours begins to fill it."""

import shutil
from pathlib import Path


def room(each: int, count: int, missing: int, folder: Path) -> str:
    """Return a sentence on what a cache takes of a disk.

    Args:
        each: Bytes of an image.
        count: Images.
        missing: Bytes that are still to be written.
        folder: Where.

    Raises:
        ValueError: they do not fit.
    """
    free = shutil.disk_usage(folder).free
    said = f"{count:,} images x {each:,} bytes = {_bytes(each * count)} in {folder}"
    if missing < each * count:
        said += f", {_bytes(missing)} of them still to be written"
    said += f"; {_bytes(free)} are free"
    if missing > free:
        raise ValueError(f"the disk has no room for the latents: {said}")
    return said


def _bytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
