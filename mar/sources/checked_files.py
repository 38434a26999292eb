"""What was found in image files, kept so that only new and changed ones are read again.

A file counts as unchanged while its size and times are; so what is kept is not proof of what a file
holds. Whoever uses an image compares its digest.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

import hashlib
import io
import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from mar.data import decoding, formats, jpeg, png, reading
from mar.data.reading import read_file
from mar.files.atomic import replacing


MODULES = (decoding, formats, jpeg, png, reading)  # whose code decides what is found
SETTLED = 50_000_000  # nanoseconds: file systems count time in steps of a few milliseconds


class Checked(NamedTuple):
    """A file that was read.

    Attributes:
        size: Its size in bytes.
        modified: When its content changed, in nanoseconds.
        changed: When its content, name or rights changed, in nanoseconds; 0 where it changed so
            shortly before it was read that it may change again without the times telling.
        sha256: The digest of its content.
        fault: Why it cannot be used, or None.
        too_large: Whether that is its number of pixels.
        sixteen_bits: Whether its samples have 16 bits.
        brightest: Its largest value as a share of the largest possible one, or NaN.
    """

    size: int
    modified: int
    changed: int
    sha256: bytes
    fault: str | None
    too_large: bool
    sixteen_bits: bool
    brightest: float

    def is_current(self, file: Path) -> bool:
        """Tell whether a file is as it was when it was read."""
        try:
            now = file.stat()
        except OSError:
            return False
        return (now.st_size, now.st_mtime_ns, now.st_ctime_ns) == self[:3]


COLUMNS = pa.schema(
    [
        ("path", pa.string()),
        ("size", pa.int64()),
        ("modified", pa.int64()),
        ("changed", pa.int64()),
        ("sha256", pa.binary(32)),
        ("fault", pa.string()),
        ("too_large", pa.bool_()),
        ("sixteen_bits", pa.bool_()),
        ("brightest", pa.float64()),
    ]
)


def check_file(file: Path, max_pixels: int) -> Checked:
    """Read a file, and decode it."""
    started = time.time_ns()
    try:
        content, described = read_file(file)
    except ValueError as error:
        return Checked(0, 0, 0, bytes(32), str(error), False, False, 0.0)
    settled = described.st_ctime_ns + SETTLED < started
    return Checked(
        len(content),
        described.st_mtime_ns,
        described.st_ctime_ns if settled else 0,
        hashlib.sha256(content).digest(),
        *decoding.inspect(content, max_pixels),
    )


def save(path: Path, checked: dict[str, Checked]) -> None:
    """Write what is known of files, by their paths, behind a digest of it."""
    rows = [(name, *file) for name, file in checked.items()]
    columns = list(zip(*rows, strict=True)) or [()] * len(COLUMNS)
    arrays = [pa.array(values, kind) for values, kind in zip(columns, COLUMNS.types, strict=True)]
    table = pa.table(arrays, schema=COLUMNS.with_metadata({"reader": reader()}))
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    content = buffer.getvalue()
    with replacing(path) as partial:
        partial.write_bytes(hashlib.sha256(content).digest() + content)


def load(path: Path) -> dict[str, Checked]:
    """Return what is known of files, by their paths.

    Nothing is, where the file is missing or damaged, or the code that checks files has changed.
    """
    try:
        written = path.read_bytes()
    except OSError:
        return {}
    digest, content = written[:32], written[32:]
    if hashlib.sha256(content).digest() != digest:
        return {}
    table = pq.read_table(io.BytesIO(content))
    if table.schema.metadata.get(b"reader") != reader().encode():
        return {}
    columns = [column.to_pylist() for column in table.columns]
    return {name: Checked(*values) for name, *values in zip(*columns, strict=True)}


def place(folder: Path, root: Path) -> Path:
    """Return the file in `folder` that keeps what is known of the images below `root`."""
    return folder / f"{hashlib.sha256(os.fsencode(root.absolute())).hexdigest()[:16]}.checked"


def reader(*others: str) -> str:
    """Return what decides what is found in a file: our code, and the libraries that decode.

    Args:
        others: Files of code that does besides.
    """
    code = hashlib.sha256()
    for file in (__file__, *(module.__file__ for module in MODULES), *others):
        code.update(Path(str(file)).read_bytes())
    return f"{code.hexdigest()} pillow {version('pillow')} torchvision {version('torchvision')}"
