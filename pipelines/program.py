"""Run a flow as a program: on the Prefect server if one answers, and with none otherwise."""

import os
import signal
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from prefect import get_client
from prefect.client.schemas.objects import State
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_SERVER_EPHEMERAL_ENABLED,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    temporary_settings,
)


ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / "work" / "prefect"  # of the server that a run starts for itself


def run(flow: Callable[[], State[Any]]) -> None:
    """Call a flow for its state, and exit: with 0 if it completed."""
    # Prefect hands SIGTERM on once the run is closed; as an exception it ends our own server too.
    signal.signal(signal.SIGTERM, _exit)
    try:
        with _server():
            state = flow()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    sys.exit(0 if state.is_completed() else 1)


def _exit(signum: int, frame: FrameType | None) -> None:
    sys.exit(128 + signum)


@contextmanager
def _server() -> Iterator[None]:
    """Use the server that is named or answers, or one for this run alone."""
    if "PREFECT_API_URL" in os.environ:
        yield  # named on purpose: if it is away, Prefect says so
        return
    # Prefect reads prefect.toml only where a command is typed.
    url = PREFECT_API_URL.value() or _project_url()
    with temporary_settings({PREFECT_API_URL: url}):
        answers = get_client(sync_client=True).api_healthcheck() is None
        if answers:
            yield
    if not answers:
        with _own_server():
            yield


def _project_url() -> str:
    return tomllib.loads((ROOT / "prefect.toml").read_text(encoding="utf-8"))["api"]["url"]


@contextmanager
def _own_server() -> Iterator[None]:
    """Let Prefect start a server for this run alone.

    Its database is the project's own: that of the user may be of another version of Prefect, or of
    nobody where there is no home.
    """
    settings: dict[Any, Any] = {
        PREFECT_API_URL: None,
        PREFECT_SERVER_EPHEMERAL_ENABLED: True,
        # With a new database, 26 s were seen on two busy cores, over 120 s on overloaded ones.
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: 300,
    }
    if "PREFECT_HOME" not in os.environ:
        HOME.mkdir(parents=True, exist_ok=True)
        settings[PREFECT_HOME] = HOME
    with temporary_settings(settings):
        # The server inherits the mask. A terminal sends Ctrl-C to it as well, and a run whose
        # server has gone takes more than a minute to end.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        get_client(sync_client=True)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        yield
