"""Run a child process, follow its output line by line, and never leave it behind.

Nor its own children: DVC starts a trainer, and the trainer its workers. They share one process
group.
"""

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path


TAIL_LINES = 20
PROGRESS_SECONDS = 30.0  # a bar redraws itself ten times a second; its state is logged this often
GRACE_SECONDS = 25.0  # for a trainer to save where it is; Prefect kills the flow after 30

# On Linux the kernel ends the child when this process is killed. Set in a new interpreter that then
# becomes the command, not by `preexec_fn`: that runs between fork and exec, where a process with
# threads, such as Prefect's, can deadlock.
_END_WITH_PARENT = """
import os, sys
if sys.platform == "linux":
    import ctypes, signal
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1: PR_SET_PDEATHSIG
os.execv(sys.argv[1], sys.argv[1:])
"""

# A bar below another one is drawn by going down a line and up again: no line ends there.
_UP_AND_DOWN = b"\x1b[A\n"
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def run(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    log: Callable[[str], None],
    grace: float = GRACE_SECONDS,
) -> tuple[int, list[str]]:
    """Run a command to its end; return its exit status (negative: a signal) and its last lines.

    To be called in the main thread: only there does a cancellation arrive as an exception.

    Args:
        command: The program and its arguments.
        folder: Where it runs.
        environment: All its variables.
        log: Takes each line that it writes.
        grace: Seconds that it has to end by itself, if this function is interrupted.
    """
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    with _process_group(command, folder, environment, grace) as process:
        for line in lines(_chunks(process)):
            log(line)
            tail.append(line)
        status = process.wait()
    return status, list(tail)


def lines(chunks: Iterable[bytes], progress_seconds: float = PROGRESS_SECONDS) -> Iterator[str]:
    """Join chunks of output into lines, without blank ones.

    A progress bar redraws its line after a carriage return. Of its states, one is yielded every
    `progress_seconds`, and the last.
    """
    rest = b""
    shown = time.monotonic()
    for chunk in chunks:
        *complete, rest = (rest + chunk).replace(_UP_AND_DOWN, b"\r").split(b"\n")
        yield from filter(None, map(_last_state, complete))
        rest = rest[rest.rfind(b"\r", 0, -1) + 1 :]
        if time.monotonic() - shown >= progress_seconds and (text := _last_state(rest)):
            yield text
            shown = time.monotonic()
    yield from filter(None, [_last_state(rest)])


def _chunks(process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    """Yield what is written until the process ends, even if an orphan still holds the pipe open."""
    assert process.stdout is not None
    pipe = process.stdout.fileno()
    while True:
        ready, _, _ = select.select([pipe], [], [], 1.0)
        if ready:
            chunk = os.read(pipe, 65536)
            if not chunk:
                return
            yield chunk
        elif process.poll() is not None:
            return


def _last_state(line: bytes) -> str:
    text = _ESCAPES.sub("", line.decode(errors="replace"))
    return text.rstrip().rpartition("\r")[2]


@contextmanager
def _process_group(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], grace: float
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", _END_WITH_PARENT, *command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdout is not None
    with process.stdout:
        try:
            yield process
        finally:  # also after Ctrl-C and Prefect's cancellation, which are not an Exception
            _end(process, grace)


def _end(process: subprocess.Popen[bytes], grace: float) -> None:
    """Ask the trainer to end, wait until it has, and kill what is left of the group after a while.

    Only the trainer is asked, and only once: it saves where it is at the first signal and ends at
    once at a second, and it needs its workers for the step that it is at. DVC, which would pass on
    its own end as a second signal, ends by itself when its stage has.
    """
    asked: set[int] = set()
    try:
        if process.poll() is not None or not _children(process.pid):
            os.killpg(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + grace
        while time.monotonic() < deadline:
            process.poll()
            os.killpg(process.pid, 0)  # raises once nobody is left
            for child in _children(process.pid) - asked:
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGTERM)
                asked.add(child)
            time.sleep(0.05)
    except ProcessLookupError:
        pass
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _children(pid: int) -> set[int]:
    """Return the processes that a process has started, or none where the system has no /proc."""
    found: set[int] = set()
    for path in Path("/proc", str(pid), "task").glob("*/children"):
        with suppress(OSError):  # a thread that has ended meanwhile
            found.update(map(int, path.read_text().split()))
    return found
