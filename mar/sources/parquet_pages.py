"""Where in a Parquet file the bytes of a binary value lie, so that one can be read without others.

A column chunk is a sequence of pages, each behind a header in Thrift's compact protocol and each
compressed as a whole (parquet-format, `parquet.thrift`, `Encodings.md`). In a page without its
compression a value stands as it is, whether the encoding is PLAIN, a dictionary or
DELTA_LENGTH_BYTE_ARRAY: so it is found by its bytes, and what was found is right by definition.

A page may hold hundreds of images: pyarrow looks at a page's size after every 1,024 values only.
Snappy compresses blocks of 64 KiB one by one, so of its pages only the blocks around a value need
to be read.
"""
# pyarrow has no types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

from bisect import bisect_right
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import pyarrow.parquet as pq

from mar.data.shards import BLOCK, SNAPPY, unpack


CODECS = {
    "UNCOMPRESSED": None,
    "SNAPPY": SNAPPY,
    "GZIP": "gzip",
    "ZSTD": "zstd",
    "BROTLI": "brotli",
    "LZ4": "lz4_raw",  # as pyarrow calls LZ4_RAW; the older kind, Hadoop's, does not unpack
    "LZ4_RAW": "lz4_raw",
}
DATA, DICTIONARY, DATA_V2 = 0, 2, 3  # PageType
BY_DICTIONARY = (2, 8)  # PLAIN_DICTIONARY, RLE_DICTIONARY: such a page holds numbers of values
DENSE = 256  # bytes of content that an element of Snappy must stand for, on average
HEADER = 1 << 13  # bytes that are mostly more than a header takes


class Found(NamedTuple):
    """Bytes of a file, what they unpack to, and where in that a value begins (see `Place`)."""

    offset: int
    stored: int
    codec: str | None
    unpacked: int
    begin: int


class Page:
    """One page of values.

    Attributes:
        content: It, without compression.
        repeats: Whether values may be asked for again, as those of a dictionary are.
    """

    def __init__(
        self,
        file: BinaryIO,
        offset: int,
        stored: int,
        codec: str | None,
        size: int,
        *,
        repeats: bool = False,
    ) -> None:
        self.repeats = repeats
        file.seek(offset)
        packed = file.read(stored)
        self.offset, self.stored, self.codec = offset, stored, codec
        if codec == SNAPPY:
            start = _skip_varint(packed)
            self.offset, self.stored, packed = offset + start, stored - start, packed[start:]
        self._packed = packed
        self.content = packed if codec is None else unpack(packed, codec, size)
        self._cuts: list[tuple[int, int]] | None = None
        self._next = 0

    def find(self, value: bytes) -> Found | None:
        """Return where a value lies in the page, if it does; values are best asked for in order."""
        begin = self._begin(value)
        if begin is None:
            return None
        self._next = begin + len(value)
        if self.codec is None:
            return Found(self.offset + begin, len(value), None, len(value), 0)
        if self.codec == SNAPPY and (cut := self._cut(begin, begin + len(value))):
            return cut
        return Found(self.offset, self.stored, self.codec, len(self.content), begin)

    def _begin(self, value: bytes) -> int | None:
        """Look where the value is likely to be, and then everywhere."""
        guesses = [self._next + 4, self._next]  # PLAIN: behind its length
        if self._next == 0:  # behind the levels of the data page's first version, and their length
            guesses.append(8 + int.from_bytes(self.content[:4], "little"))
        for begin in guesses:
            if self.content.startswith(value, begin):
                return begin
        begin = self.content.find(value, 0 if self.repeats else self._next)
        return None if begin < 0 else begin

    def _cut(self, begin: int, end: int) -> Found | None:
        """Return the blocks around some bytes, if they unpack to the same without those before."""
        if self._cuts is None:
            self._cuts = snappy_cuts(self._packed, len(self.content))
        if len(self._cuts) < 2:
            return None
        first = bisect_right(self._cuts, (begin, len(self._packed))) - 1
        last = bisect_right(self._cuts, (end - 1, len(self._packed)))
        (start, packed_start), (stop, packed_stop) = self._cuts[first], self._cuts[last]
        blocks = self._packed[packed_start:packed_stop]
        try:
            same = unpack(blocks, SNAPPY, stop - start) == self.content[start:stop]
        except ValueError:  # they refer to what is before them
            return None
        if not same:
            return None
        stored = packed_stop - packed_start
        return Found(self.offset + packed_start, stored, SNAPPY, stop - start, begin - start)


class ChunkReader:
    """Finds the values of a column chunk, in their order.

    It holds one page, and that of the dictionary.
    """

    def __init__(self, file: BinaryIO, chunk: pq.ColumnChunkMetaData) -> None:
        """Begin with the first page.

        Raises:
            ValueError: the chunk is compressed in a way that is not known.
        """
        if chunk.compression not in CODECS:
            raise ValueError(
                f"the column {chunk.path_in_schema} is compressed by {chunk.compression}, expected "
                f"{', '.join(CODECS)}"
            )
        self._name: str = chunk.path_in_schema
        self._encodings: tuple[str, ...] = chunk.encodings
        self._dictionary: Page | None = None
        self._page: Page | None = None
        self._pages = self._read(file, chunk)

    def find(self, value: bytes) -> Found:
        """Return where the next value lies.

        Raises:
            ValueError: it is stored in pieces.
        """
        while True:
            for page in (self._page, self._dictionary):
                if page is not None and (found := page.find(value)) is not None:
                    if page is self._page:  # a writer that gave up its dictionary stays with that
                        self._dictionary = None
                    return found
            following = next(self._pages, None)
            if following is None:
                raise ValueError(
                    f"the column {self._name} is encoded so that images lie in pieces "
                    f"({', '.join(self._encodings)}), expected PLAIN, RLE_DICTIONARY or "
                    "DELTA_LENGTH_BYTE_ARRAY; write the file anew with pyarrow"
                )
            if following.repeats:
                self._dictionary = following
            else:
                self._page = following

    def _read(self, file: BinaryIO, chunk: pq.ColumnChunkMetaData) -> Iterator[Page]:
        codec = CODECS[chunk.compression]
        offset = min(chunk.data_page_offset, chunk.dictionary_page_offset or chunk.data_page_offset)
        end = offset + chunk.total_compressed_size
        while offset < end:
            header, length = read_header(file, offset)
            kind, size, stored = header[1], header[2], header[3]
            offset += length
            if kind == DICTIONARY:
                yield Page(file, offset, stored, codec, size, repeats=True)
            elif kind == DATA and header[5][2] not in BY_DICTIONARY:
                yield Page(file, offset, stored, codec, size)
            elif kind == DATA_V2 and header[8][4] not in BY_DICTIONARY:
                levels = header[8][5] + header[8][6]
                packed = codec if header[8].get(7, True) else None
                yield Page(file, offset + levels, stored - levels, packed, size - levels)
            offset += stored


def snappy_cuts(packed: bytes, size: int) -> list[tuple[int, int]]:
    """Return where blocks begin, in what is unpacked and in what is packed, and where they end.

    Nothing is returned of content so compressible that following its elements takes too long.
    """
    cuts = [(0, 0)]
    at, written, elements = 0, 0, 0
    most = max(size // DENSE, 1024)
    while at < len(packed):
        tag = packed[at]
        kind, count = tag & 3, tag >> 2
        if kind == 0:  # a literal, of up to 60 bytes or behind 1 to 4 bytes of its length
            extra = max(count - 59, 0)
            if extra:
                count = int.from_bytes(packed[at + 1 : at + 1 + extra], "little")
            at += 1 + extra + count + 1
            written += count + 1
        elif kind == 1:  # copies, with offsets of 11, 16 and 32 bits
            at += 2
            written += (count & 7) + 4
        else:
            at += 3 if kind == 2 else 5
            written += count + 1
        if written % BLOCK == 0:
            cuts.append((written, at))
        elements += 1
        if elements > most:
            return []
    if (written, at) != (size, len(packed)):
        return []
    if cuts[-1] != (size, at):
        cuts.append((size, at))
    return cuts


def read_header(file: BinaryIO, offset: int) -> tuple[dict[int, Any], int]:
    """Return the fields of a page's header by their numbers, and the length of it.

    Raises:
        ValueError: there is none.
    """
    length = HEADER
    while True:
        file.seek(offset)
        content = file.read(length)
        try:
            return _struct(content, 0)
        except IndexError:
            if len(content) < length:
                raise ValueError(f"no page begins at byte {offset}") from None
            length *= 16


def _struct(content: bytes, at: int) -> tuple[dict[int, Any], int]:
    """Read a struct of Thrift's compact protocol; return its fields, and where it ends."""
    fields: dict[int, Any] = {}
    number = 0
    while content[at]:
        delta, kind = content[at] >> 4, content[at] & 15
        at += 1
        if delta:
            number += delta
        else:
            number, at = _integer(content, at)
        if kind in (1, 2):
            fields[number] = kind == 1
        else:
            fields[number], at = _value(content, at, kind)
    return fields, at + 1


def _value(content: bytes, at: int, kind: int) -> tuple[Any, int]:
    match kind:
        case 3:
            return content[at], at + 1
        case 4 | 5 | 6:
            return _integer(content, at)
        case 7:
            return None, at + 8
        case 8:
            length, at = _varint(content, at)
            return None, at + length
        case 12:
            return _struct(content, at)
        case _:
            raise ValueError(f"a page's header holds a value of the kind {kind}")


def _integer(content: bytes, at: int) -> tuple[int, int]:
    """Read a signed number, whose lowest bit is its sign."""
    value, at = _varint(content, at)
    return value >> 1 if not value & 1 else -(value + 1 >> 1), at


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        value |= (content[at] & 127) << shift
        shift += 7
        at += 1
        if content[at - 1] < 128:
            return value, at


def _skip_varint(content: bytes) -> int:
    return _varint(content, 0)[1]
