"""Let a training end between two steps, so that what it has reached can be saved."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self


REPEATED = 3.0  # seconds within which a signal is taken for a repetition of the one before
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class DeferredSignals:
    """While entered, SIGTERM, SIGINT and SIGUSR1 are noted, and act when `deliver` is called.

    (Slurm sends SIGUSR1 some time before a job's end, if asked to.)

    A second signal, some seconds after the first, acts at once, for whoever cannot wait. (Sooner it
    may be the same: Slurm, and whoever ends a group, signals a launcher and its processes. What a
    launcher has started waits in any case.) Outside the main thread, where Python
    allows no handlers, nothing is deferred.
    """

    def __init__(self) -> None:
        self._previous: dict[int, Any] = {}
        self._noted: int | None = None
        self._noted_at = 0.0

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()
        if kind is None:
            self.deliver()

    @property
    def noted(self) -> bool:
        """Whether a signal waits to act."""
        return self._noted is not None

    def deliver(self, before: Callable[[], object] = lambda: None) -> None:
        """Act on a noted signal, if there is one.

        Args:
            before: Is called first, for instance to save a checkpoint.
        """
        if self._noted is None:
            return
        number, self._noted = self._noted, None
        before()
        self._restore()
        os.kill(os.getpid(), number)

    @contextmanager
    def immediate(self, before: Callable[[], object]) -> Iterator[None]:
        """Let signals act at once while the block runs.

        Args:
            before: Is called when one ends the block.
        """
        self.deliver(before)
        self._restore()
        try:
            yield
        except (SystemExit, KeyboardInterrupt):
            before()
            raise
        self.__enter__()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._noted is None:
            self._noted, self._noted_at = number, time.monotonic()
        elif time.monotonic() - self._noted_at > REPEATED and "MAR_LAUNCHED" not in os.environ:
            self._restore()
            os.kill(os.getpid(), number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
