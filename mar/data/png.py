"""The chunks of PNG files (PNG specification, section 5)."""

import zlib
from collections.abc import Iterator
from typing import NamedTuple


SIGNATURE = b"\x89PNG\r\n\x1a\n"
PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # what decides the picture
ORIENTATION = b"eXIf"


class Chunk(NamedTuple):
    """A chunk: its type, all its bytes, and whether its checksum is right."""

    kind: bytes
    content: bytes
    intact: bool


def is_png(content: bytes) -> bool:
    """Tell whether a file begins as a PNG file does."""
    return content.startswith(SIGNATURE)


def without_metadata(content: bytes) -> bytes:
    """Return a PNG file without what does not decide how it looks.

    Colour profiles and texts can be damaged, or larger than Pillow permits, in a sound picture.
    """
    kept = [
        chunk.content
        for chunk in _chunks(content)
        if chunk.kind in PIXELS or (chunk.kind == ORIENTATION and chunk.intact)
    ]
    return SIGNATURE + b"".join(kept)


def find_damage(content: bytes) -> str | None:
    """Return which chunk that decides the picture has a wrong checksum, or None."""
    for chunk in _chunks(content):
        if chunk.kind in PIXELS and not chunk.intact:
            return f"damaged: the checksum of a chunk {chunk.kind.decode()} is wrong"
    return None


def bit_depth(content: bytes) -> int:
    """Return the bits of a sample."""
    return content[24]


def _chunks(content: bytes) -> Iterator[Chunk]:
    start = len(SIGNATURE)
    while start + 12 <= len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4])
        kind = content[start + 4 : start + 8]
        checksum = int.from_bytes(content[end - 4 : end])
        yield Chunk(kind, content[start:end], zlib.crc32(content[start + 4 : end - 4]) == checksum)
        if kind == b"IEND":
            return
        start = end
