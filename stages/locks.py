"""A lock between processes, held by way of a file."""

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


PATIENCE = 30.0  # seconds: a killed process leaves children for a while, which hold its lock
# What file systems without locks answer (some network file systems).
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextmanager
def locked(path: Path, *, patience: float = -1, waiting_for: str = "") -> Iterator[None]:
    """Hold a lock while the block runs; where the file system has none, say so and go on.

    Args:
        path: The lock's file; the process that holds it is named in `<path>.holder`.
        patience: Seconds to wait for another process; -1 waits as long as it takes.
        waiting_for: What the other process does, for the message while waiting.

    Raises:
        ValueError: another process still holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        _acquire(lock, _holder_file(path), patience, waiting_for)
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        sys.stderr.write(
            f"{path.parent} is on a file system without locks ({error}); going on without one: "
            "do not start a stage twice at the same time\n"
        )
        yield
        return
    try:
        _holder_file(path).write_text(str(os.getpid()))
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, holder: Path, patience: float, waiting_for: str) -> None:
    try:
        lock.acquire(timeout=0 if waiting_for else patience)
        return
    except Timeout:
        if not waiting_for:
            raise
    process = holder.read_text() if holder.is_file() else "unknown"
    sys.stderr.write(f"{waiting_for}: waiting for process {process} to end\n")
    started = time.monotonic()
    try:
        lock.acquire(timeout=patience, poll_interval=0.2)
    except Timeout:
        waited = time.monotonic() - started
        raise ValueError(
            f"{waiting_for} is already running here as process {process} (waited {waited:.0f} s)"
        ) from None


def _holder_file(path: Path) -> Path:
    return path.with_name(path.name + ".holder")
