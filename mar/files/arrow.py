"""Arrow files, mapped into memory."""
# pyarrow has no types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

import errno
import os
from pathlib import Path

import pyarrow as pa
from pyarrow import ipc


def open_arrow(path: Path) -> ipc.RecordBatchFileReader:
    """Open an Arrow file.

    Raises:
        ValueError: it is none.
        MemoryError: there is no room in memory to map it.
    """
    try:
        return ipc.open_file(pa.memory_map(str(path)))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not an Arrow file: {error}") from None
    except OSError as error:
        if os.strerror(errno.ENOMEM) in str(error):  # it gives no number
            raise MemoryError(f"{path} does not fit into the memory that is left") from None
        raise OSError(f"{path} cannot be read: {error}") from None
