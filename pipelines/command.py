"""Run a DVC command inside a Prefect task, and turn its failure into an exception."""

import asyncio
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import flow_run
from prefect.tasks import Task

from pipelines import child


# A stage killed by SIGKILL or SIGTERM: as DVC's shell passes it on, or as a shell reports it.
KILLED = re.compile(r"exited with (-9|-15|137|143)$")


class StageKilledError(RuntimeError):
    """A stage was killed from outside, so another try can succeed."""


class PlaceLostError(RuntimeError):
    """The Prefect server no longer lets this run go on."""


def dvc(
    arguments: list[str],
    folder: Path,
    log: Callable[[str], None],
    *,
    what: str,
    pipeline: str,
    **variables: str,
) -> None:
    """Run DVC to its end.

    Args:
        arguments: The arguments of `dvc`.
        folder: The project.
        log: Takes each line that is written.
        what: What is being run, for messages.
        pipeline: A key that the stages share; MLflow groups their runs by it.
        variables: Further environment variables.

    Raises:
        StageKilledError: A stage was killed.
        PlaceLostError: The Prefect server no longer lets this run go on.
        RuntimeError: DVC or a stage failed, with the last lines written.
    """
    # `python` is this one, whether or not it was activated.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    added = {
        "PATH": path,
        "SHELL": "/bin/sh",  # runs a stage's command; a service account's own shell refuses to
        "PYTHONUNBUFFERED": "1",
        "MAR_PIPELINE": pipeline,
        **variables,
    }
    command = [sys.executable, "-m", "dvc", *arguments]
    try:
        status, tail = child.run(command, folder, {**os.environ, **added}, log)
    except asyncio.CancelledError:  # raised in this thread by Prefect; Ctrl-C is another exception
        raise PlaceLostError(
            f"{what} was stopped: for minutes the Prefect server heard nothing of this run, and "
            "lets others run instead (was this machine asleep, or the server away?). What the "
            "stage has saved is kept; the next run continues from there."
        ) from None
    if status != 0:
        killed = status < 0 or any(KILLED.search(line) for line in tail)
        kind, verb = (StageKilledError, "was killed") if killed else (RuntimeError, "failed")
        raise kind(f"{what} {verb}\n" + "\n".join(tail))


def was_killed(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Return whether a stage was killed: only then is another try worth it."""
    return isinstance(state.result(raise_on_failure=False), StageKilledError)


def pipeline_key(name: str) -> str:
    """Return the key by which MLflow groups the runs of a pipeline, unique to this flow run."""
    plain = re.sub(r"[^\w.-]+", "-", name)
    return f"{plain}-{flow_run.id}"
