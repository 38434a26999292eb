"""Files as they lie on a disk, of which some are no files."""

import os
import stat
from pathlib import Path


def read_file(path: Path) -> tuple[bytes, os.stat_result]:
    """Return the content of a file, and how it was described when it was opened.

    Raises:
        ValueError: it cannot be read, or is a pipe, a socket or a device, of which reading may
            never end; the message does not name it.
    """
    try:
        opened = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(opened, "rb") as file:  # noqa: PTH123 (a descriptor)
            described = os.fstat(opened)
            if not stat.S_ISREG(described.st_mode):
                raise ValueError("not a file, but a pipe, socket, device or folder")
            return file.read(), described
    except MemoryError:
        raise ValueError(f"{path.stat().st_size} bytes, which memory does not hold") from None
    except OSError as error:
        if path.exists() and not path.is_file():  # a socket cannot be opened
            raise ValueError("not a file, but a pipe, socket, device or folder") from None
        raise ValueError(error.strerror or "cannot be read") from None
