"""Images within shards: Parquet files and tar archives that hold many of them.

An image is a range of bytes of its shard, or of what some bytes of it unpack to: Parquet files are
mostly compressed, in pages of one image or of hundreds.
"""
# pyarrow has no types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import os
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa


SNAPPY = "snappy"
BLOCK = 1 << 16  # bytes that Snappy compresses apart from those before
KEPT_PAGES = 4  # unpacked, in each process: what is read in order is unpacked once


class Place(NamedTuple):
    """Where an image lies in a shard.

    Attributes:
        shard: The path of the shard, relative to the data folder.
        offset: The first of the bytes to read, in the shard.
        stored: How many they are.
        codec: How they are compressed, or None.
        unpacked: How many they are without compression.
        begin: The first byte of the image among those; 0 without compression.
    """

    shard: str
    offset: int
    stored: int
    codec: str | None
    unpacked: int
    begin: int


def read_image(root: Path, place: Place, size: int) -> bytes:
    """Return the `size` bytes of an image in a shard of the folder `root`.

    Raises:
        ValueError: the shard cannot be read, is too short, or does not unpack.
    """
    shard = root / place.shard
    try:
        if place.codec is None:
            content = _read(shard, place.offset, size)
        else:
            content = _unpacked(shard, place, size)[place.begin : place.begin + size]
    except OSError as error:
        if not shard.exists():
            raise ValueError(
                f"{shard} is gone since prepare ran, or the data folder (data.path) lies elsewhere"
            ) from None
        raise ValueError(f"{shard}: {error.strerror or error}") from None
    except ValueError:
        raise ValueError(f"{shard} has other content than when prepare ran") from None
    if len(content) != size:
        raise ValueError(f"{shard} is shorter than when prepare ran")
    return content


def unpack(stored: bytes, codec: str, unpacked: int) -> bytes:
    """Return what compressed bytes unpack to.

    Those of Snappy lack the length with which its format begins: blocks out of the middle have
    none of their own.

    Raises:
        ValueError: they do not unpack.
    """
    if codec == SNAPPY:
        stored = _varint(unpacked) + stored
    try:
        return pa.decompress(stored, decompressed_size=unpacked, codec=codec, asbytes=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"damaged: {error}") from None


def _unpacked(shard: Path, place: Place, size: int) -> bytes:
    assert place.codec is not None
    if place.unpacked > size + 2 * BLOCK:  # a page of several images
        return _page(shard, place.offset, place.stored, place.codec, place.unpacked)
    return unpack(_read(shard, place.offset, place.stored), place.codec, place.unpacked)


@lru_cache(maxsize=KEPT_PAGES)
def _page(shard: Path, offset: int, stored: int, codec: str, unpacked: int) -> bytes:
    return unpack(_read(shard, offset, stored), codec, unpacked)


def _read(shard: Path, offset: int, count: int) -> bytes:
    opened = os.open(shard, os.O_RDONLY)
    try:
        return os.pread(opened, count, offset)
    finally:
        os.close(opened)


def _varint(value: int) -> bytes:
    """Return a number as Snappy and Thrift write it: seven bits a byte, the lowest first."""
    digits = bytearray()
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])
