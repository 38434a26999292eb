"""Run a flow as a program: on the Prefect server if one answers, and with none otherwise."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any

from prefect import get_client
from prefect.client.schemas.objects import State
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_SERVER_EPHEMERAL_ENABLED,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    temporary_settings,
)


def run(flow: Callable[[], State[Any]]) -> None:
    """Call a flow for its state, and exit: with 0 if it completed."""
    # Prefect hands SIGTERM on once the run is closed; as an exception it ends our own server too.
    signal.signal(signal.SIGTERM, _exit)
    try:
        with nullcontext() if _server_answers() else _own_server():
            state = flow()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    sys.exit(0 if state.is_completed() else 1)


def _exit(signum: int, frame: FrameType | None) -> None:
    sys.exit(128 + signum)


def _server_answers() -> bool:
    if "PREFECT_API_URL" in os.environ:
        return True  # named on purpose: if it is away, Prefect says so
    if PREFECT_API_URL.value() is None:
        return False
    return get_client(sync_client=True).api_healthcheck() is None


@contextmanager
def _own_server() -> Iterator[None]:
    """Let Prefect start a server for this run alone."""
    with temporary_settings(
        {
            PREFECT_API_URL: None,
            PREFECT_SERVER_EPHEMERAL_ENABLED: True,
            # With a new database, 26 s were seen on two busy cores, over 120 s on overloaded ones.
            PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: 300,
        }
    ):
        # The server inherits the mask. A terminal sends Ctrl-C to it as well, and a run whose
        # server has gone takes more than a minute to end.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        get_client(sync_client=True)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        yield
