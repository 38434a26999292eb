"""Walk the stages of `dvc.yaml`: DVC decides whether a stage runs, Prefect when and where.

`python -m pipelines.reproduce` needs no server; `prefect.yaml` describes the deployment.
"""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from prefect import flow, get_client, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import flow_run
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_SERVER_EPHEMERAL_ENABLED,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    temporary_settings,
)
from prefect.tasks import Task

from pipelines import child, graph


ROOT = Path(__file__).resolve().parents[1]

# What DVC prints about a stage that it brings up to date, and what that means.
STATES = {"Running stage '{}'": "ran", "Stage '{}' is cached": "restored from cache"}

# A stage killed by SIGKILL or SIGTERM: as DVC's shell passes it on, or as a shell reports it.
KILLED = re.compile(r"exited with (-9|-15|137|143)$")


class StageKilledError(RuntimeError):
    """A stage was ended from outside, so that another try can succeed."""


@dataclass(frozen=True)
class Outcome:
    """What became of a stage.

    Attributes:
        stage: Its name in `dvc.yaml`.
        state: "ran", "restored from cache" or "up to date".
        seconds: How long DVC took for it.
    """

    stage: str
    state: str
    seconds: float


def was_killed(task: Task[..., Outcome], run: TaskRun, state: State[Outcome]) -> bool:
    """Allow another try only to a stage that was killed: a mistake fails once."""
    return isinstance(state.result(raise_on_failure=False), StageKilledError)


@task(
    task_run_name="{stage}",
    cache_policy=NO_CACHE,  # DVC alone knows whether a result is still good
    persist_result=False,
    retries=2,
    retry_delay_seconds=10,
    retry_condition_fn=was_killed,
)
def repro(stage: str, project: Path, *, force: bool, pipeline: str) -> Outcome:
    """Bring one stage up to date.

    Raises:
        StageKilledError: It was killed.
        RuntimeError: It failed, with the last lines that it wrote.
    """
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", stage]
    written: list[str] = []
    logger = get_run_logger()

    def log(line: str) -> None:
        logger.info("%s", line)
        written.extend(state for text, state in STATES.items() if text.format(stage) in line)

    started = time.monotonic()
    environment = _environment(pipeline)
    status, tail = child.run([*command, *["--force"] * force], project, environment, log)
    if status != 0:
        killed = status < 0 or any(KILLED.search(line) for line in tail)
        kind, verb = (StageKilledError, "was killed") if killed else (RuntimeError, "failed")
        raise kind(f"stage {stage!r} {verb}\n" + "\n".join(tail))
    return Outcome(stage, [*written, "up to date"][0], time.monotonic() - started)


@flow(persist_result=False)
def reproduce(
    stages: list[str] | None = None, force: bool = False, project: Path | None = None
) -> list[Outcome]:
    """Bring the stages up to date, one after the other, as `dvc repro` does.

    Args:
        stages: The stages to end with; what they depend on comes first. Every stage by default.
        force: Run them even if nothing has changed.
        project: A folder with a `dvc.yaml`; this repository by default.
    """
    project = (project or ROOT).resolve()
    names = graph.order(graph.read(project), stages)
    pipeline = _pipeline_key()
    # Called in this thread, not submitted: a cancelled flow then ends its trainer in seconds.
    outcomes = [repro(name, project, force=force, pipeline=pipeline) for name in names]
    _publish(project, outcomes)
    return outcomes


def _pipeline_key() -> str:
    """Return a key of this run, for the stages to share: MLflow groups their runs by it."""
    name = re.sub(r"[^\w.-]+", "-", str(flow_run.name))
    return f"{name}-{flow_run.id}"


def _environment(pipeline: str) -> dict[str, str]:
    """Return the environment of a stage; `python` is this one, whether or not it was activated."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", "MAR_PIPELINE": pipeline}


def _publish(project: Path, outcomes: list[Outcome]) -> None:
    """Show what became of the stages, and the scores, as artifacts of the flow run."""
    rows = [
        {
            "stage": outcome.stage,
            "state": outcome.state,
            "seconds": round(outcome.seconds, 1),
            "MLflow run": _metrics(project, outcome.stage).get("run_id", ""),
        }
        for outcome in outcomes
    ]
    create_table_artifact(rows, key="stages", description="What became of each stage.")
    scores = _metrics(project, "evaluate")
    if scores and any(outcome.stage == "evaluate" for outcome in outcomes):
        text = f"```json\n{json.dumps(scores, indent=2)}\n```"
        create_markdown_artifact(text, key="scores", description="out/evaluate/metrics.json")


def _metrics(project: Path, stage: str) -> dict[str, object]:
    path = project / "out" / stage / "metrics.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def main() -> None:
    """Reproduce every stage, on the Prefect server if one answers and with none otherwise."""
    # Prefect hands SIGTERM on once the run is closed; as an exception it ends our own server too.
    signal.signal(signal.SIGTERM, _exit)
    try:
        with nullcontext() if _server_answers() else _own_server():
            state = reproduce(return_state=True)
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
            PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: 120,  # 26 s seen on two busy cores
        }
    ):
        # The server inherits the mask. A terminal sends Ctrl-C to it as well, and a run whose
        # server has gone takes more than a minute to end.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        get_client(sync_client=True)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        yield


if __name__ == "__main__":
    main()
