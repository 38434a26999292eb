"""Damage in JPEG files that decoders pass over (JPEG: ITU-T T.81)."""

import os
import re
import tempfile
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import torch


# Markers (table B.1).
START_OF_SCAN, END_OF_IMAGE, HUFFMAN_TABLES = 0xDA, 0xD9, 0xC4
NEXT_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # others are data, and restarts in a scan
# What libjpeg writes.
DAMAGE = re.compile(r"^(Corrupt JPEG data|Premature end of JPEG file).*$", re.MULTILINE)
LATE = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
ZEROS = bytes(64)  # zero bytes in a row that mean something in an even area alone


@dataclass(frozen=True)
class Scan:
    """The codes of a scan in a file.

    Attributes:
        start: Where they begin.
        end: Where they end.
        zeros_are_even: Whether a row of zero bits may stand for blocks without detail.
    """

    start: int
    end: int
    zeros_are_even: bool


def find_damage(content: bytes) -> str | None:
    """Return how the data of a JPEG file are damaged, or None.

    libjpeg fills what it cannot decode with grey and goes on, with no more than a line on the
    standard error output, and Pillow hides that line. It notices codes that do not exist and data
    that end too early or much too late. Noticed here are data that end a little too late (without
    its last byte, a sound file must end too early) and long rows of zeros that mean detail.

    Zeroed, lost and added bytes are found nearly always in a baseline file, and mostly in a
    progressive one, whose later scans are bits without codes. A single flipped bit is found about
    one time in four: where as many blocks as there should be come out, nothing in the file can
    tell.
    """
    scans = list(_scans(content))
    if not scans:
        return None
    for scan in scans:
        if not scan.zeros_are_even and content.find(ZEROS, scan.start, scan.end) >= 0:
            return "damaged: a part is overwritten with zeros"
    try:
        complaint = _find_complaint(content, scans[-1])
    except RuntimeError:  # a kind of JPEG that Pillow decodes, and torchvision does not
        return None
    return None if complaint is None else f"damaged: {complaint}"


def _find_complaint(content: bytes, last: Scan) -> str | None:
    complaint = _complaint(content)
    start, end = last.start, last.end
    codes = content[start:end].rstrip(b"\0\xff")  # without what some cameras fill up with
    if complaint is not None and (late := LATE.match(complaint)):
        complaint = None if int(late[1]) <= end - start - len(codes) else complaint
    if complaint is None and len(codes) > 1:
        shortened = content[:start] + codes[:-1] + bytes((0xFF, END_OF_IMAGE))
        complaint = None if _complaint(shortened) else "data are left after the last block"
    return complaint


def _complaint(content: bytes) -> str | None:
    """Return what libjpeg says while it decodes a file, if that is about damage."""
    # Here, as it takes seconds to import, and data without JPEG files do not need it.
    from torchvision.io import (  # pyright: ignore[reportMissingTypeStubs]
        ImageReadMode,
        decode_jpeg,
    )

    source = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    with _captured_stderr() as written, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torchvision's own decoders
        decode_jpeg(source, mode=ImageReadMode.GRAY)
        written.seek(0)
        text = written.read().decode(errors="replace")
    found = DAMAGE.search(text)
    return None if found is None else found[0].removeprefix("Corrupt JPEG data: ")


def _scans(content: bytes) -> Iterator[Scan]:
    """Yield the scans of the first image in a file (section B.1.1)."""
    zero_symbols: dict[int, int] = {}  # of the Huffman tables: 0 to 3 for DC, 16 to 19 for AC
    place = 2
    while place + 4 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if marker == END_OF_IMAGE:
            return
        if marker == 0xFF:  # filling
            place += 1
            continue
        length = int.from_bytes(content[place + 2 : place + 4])
        segment = content[place + 4 : place + 2 + length]
        place += 2 + length
        if marker == HUFFMAN_TABLES:
            zero_symbols.update(_zero_symbols(segment))
        elif marker == START_OF_SCAN and len(segment) >= 6:
            found = NEXT_MARKER.search(content, place)
            end = len(content) if found is None else found.start()
            yield Scan(place, end, _zeros_are_even(segment, zero_symbols))
            place = end


def _zero_symbols(segment: bytes) -> Iterator[tuple[int, int]]:
    """Yield what the code of zero bits alone means, for each Huffman table (section B.2.4.2)."""
    while len(segment) >= 18:
        yield segment[0], segment[17]  # codes are given in their order: zeros are the first
        segment = segment[17 + sum(segment[1:17]) :]


def _zeros_are_even(header: bytes, zero_symbols: dict[int, int]) -> bool:
    """Tell whether zero bits alone may mean blocks without detail in a scan (section B.2.3)."""
    tables = header[2]  # of the first component: in the higher half DC, in the lower one AC
    first, last, shift = header[-3:]
    if last == 0 and shift >> 4:  # a further bit of each mean value
        return True
    if first == 0 and last == 0:
        return zero_symbols.get(tables >> 4, 0) == 0  # the mean value stays
    return zero_symbols.get(16 + (tables & 15), 0) & 15 == 0  # the end of a block, or of several


@contextmanager
def _captured_stderr() -> Generator[IO[bytes]]:
    """Send what C code writes to the standard error output into a file meanwhile."""
    before = os.dup(2)
    try:
        with tempfile.TemporaryFile() as file:
            os.dup2(file.fileno(), 2)
            try:
                yield file
            finally:
                os.dup2(before, 2)
    finally:
        os.close(before)
