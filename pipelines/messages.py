"""Shorten what Prefect logs of an error: a stage that failed, a server that does not answer.

Prefect logs an exception two or three times, each with a traceback through its own code. Here an
error that has a message for people is logged once, as that message. `MAR_TRACEBACK` keeps all.
"""

import asyncio
import logging
import os


RUNS = ("prefect.flow_runs", "prefect.task_runs")
# What they report in passing; where it matters, the run ends with a message of its own.
BACKGROUND = ("prefect.concurrency", "prefect.events", "prefect._internal.concurrency")
EXPECTED = (RuntimeError, ValueError, OSError, asyncio.CancelledError)
LOST_PLACE = "Concurrency lease renewal failed"


class _Once(logging.Filter):
    """Replaces the traceback of an expected error by its message, and drops repetitions."""

    def __init__(self) -> None:
        super().__init__()
        self._logged: BaseException | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        if str(record.msg).startswith(LOST_PLACE):
            return False
        error = record.exc_info[1] if record.exc_info else None
        if error is None or not isinstance(error, EXPECTED):
            return True
        if error is self._logged:
            return False
        self._logged = error
        record.msg, record.args = str(error) or type(error).__name__, ()
        record.exc_info = record.exc_text = None
        return True


_once = _Once()


def shorten() -> None:
    """Shorten what is logged from now on, in this process."""
    if os.environ.get("MAR_TRACEBACK"):
        return
    for name in RUNS:
        logging.getLogger(name).addFilter(_once)  # adds a filter once only
    for name in BACKGROUND:
        logging.getLogger(name).setLevel(logging.CRITICAL)
