"""Room on a disk, before a stage of hours begins to fill it."""

import shutil
from pathlib import Path


def room_for_checkpoints(each: int, keep: int, others: int, folder: Path) -> str:
    """Return a sentence on what a training takes of a disk.

    Args:
        each: Bytes of a checkpoint.
        keep: Checkpoints that are kept; while another is written, there is one more.
        others: Bytes of the other files that the training is still to write.
        folder: Where checkpoints lie; those that are there already need no further room.

    Raises:
        ValueError: they do not fit.
    """
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    missing = max(each * (keep + 1) - there, 0) + others
    free = shutil.disk_usage(folder).free
    said = f"{keep + 1} checkpoints x {_bytes(each)} in {folder}, {_bytes(others)} of other files"
    if there:
        said += f", {_bytes(missing)} still to be written"
    said += f"; {_bytes(free)} are free"
    if missing > free:
        raise ValueError(
            f"the disk has no room for the checkpoints: {said} (MAR_KEEP_CHECKPOINTS, here {keep}, "
            "is how many are kept)"
        )
    return said


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


def room_for_embeddings(tokens: int, size: int, dtype: str, folder: Path) -> str:
    """Return a sentence on what the embeddings of captions take of a disk.

    Args:
        tokens: Tokens of all captions.
        size: Channels of an embedding.
        dtype: Its number type.
        folder: Where they lie; those that are there already need no further room.

    Raises:
        ValueError: they do not fit.
    """
    each = size * (4 if dtype == "float32" else 2)
    there = sum(path.stat().st_size for path in folder.glob("tokens-*.arrow"))
    free = shutil.disk_usage(folder).free
    said = f"{tokens:,} tokens x {each:,} bytes = {_bytes(each * tokens)} in {folder}"
    said += f"; {_bytes(free)} are free"
    if each * tokens - there > free:
        raise ValueError(
            f"the disk has no room for the embeddings: {said} (text.cache: null keeps none)"
        )
    return said


def _bytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
