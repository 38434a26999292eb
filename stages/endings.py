"""The last words of a program of `stages` or `pipelines` that is interrupted or finds no memory.

Their `__init__.py` installs them, so they hold from before torch or Prefect is imported, which
takes seconds. Errors of other kinds keep their traceback.
"""

import errno
import os
import re
import signal
import sys
from types import FrameType, TracebackType


INTERRUPTED = 128 + signal.SIGINT  # exit code, as shells have it

# How libraries tell that there is no more memory, where they have no type of error for it.
NO_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "can't start new thread",
    "failed to map segment from shared object",  # of a library that is imported
)


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error is about memory, whichever library it is from."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    told = isinstance(error, RuntimeError | ImportError)
    return told and any(words in text for words in NO_MEMORY)


def install(package: str) -> None:
    """Install them if this process is a program of a package, and none that imports a part."""
    match = re.search(rf"\0-m\0?{package}\.(\w+)", "\0".join(sys.orig_argv))
    if match is None or os.environ.get("MAR_TRACEBACK"):
        return
    name, show = match[1], sys.excepthook
    # Of several processes, the one that has started the others says it.
    interrupted = "" if "MAR_LAUNCHED" in os.environ else f"{name}: interrupted\n"

    def last_words(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.stderr.write(interrupted)
            raise SystemExit(INTERRUPTED)
        if is_out_of_memory(error):
            reason = (str(error).splitlines() or [kind.__name__])[0]
            sys.stderr.write(f"{name}: there is not enough memory ({reason})\n")
            raise SystemExit(1)
        show(kind, error, traceback)

    def interrupt(signum: int, frame: FrameType | None) -> None:
        if _is_importing(frame):  # where some libraries catch KeyboardInterrupt and go on
            os.write(2, interrupted.encode())
            os._exit(INTERRUPTED)
        signal.default_int_handler(signum, frame)

    sys.excepthook = last_words
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not in the background
        signal.signal(signal.SIGINT, interrupt)


def _is_importing(frame: FrameType | None) -> bool:
    """Whether the program's own imports are under way, so that it has begun nothing yet."""
    inner: list[FrameType] = []
    while frame is not None and frame.f_globals.get("__name__") != "__main__":
        inner.append(frame)
        frame = frame.f_back
    if frame is None:  # the package alone is imported, the program's module not yet
        return True
    called = [frame.f_code.co_filename for frame in reversed(inner)]
    if called and called[0].endswith("stages/stage.py"):  # its `run` imports the runner by name
        called = called[1:]
    return bool(called) and "importlib" in called[0]
