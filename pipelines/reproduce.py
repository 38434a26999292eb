"""Walk the stages of `dvc.yaml`: DVC decides whether a stage runs, Prefect when and where.

`python -m pipelines.reproduce` needs no server; `prefect.yaml` describes the deployment.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from mar.files import atomic
from pipelines import command, graph, program


ROOT = Path(__file__).resolve().parents[1]

# What DVC prints about a stage that it brings up to date, and what that means.
STATES = {"Running stage '{}'": "ran", "Stage '{}' is cached": "restored from cache"}


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


@task(
    task_run_name="{stage}",
    cache_policy=NO_CACHE,  # DVC alone knows whether a result is still good
    persist_result=False,
    retries=2,
    retry_delay_seconds=10,
    retry_condition_fn=command.was_killed,
)
def repro(stage: str, project: Path, *, force: bool, pipeline: str) -> Outcome:
    """Bring one stage up to date.

    Raises:
        StageKilledError: It was killed.
        RuntimeError: It failed, with the last lines that it wrote.
    """
    written: list[str] = []
    logger = get_run_logger()

    def log(line: str) -> None:
        logger.info("%s", line)
        written.extend(state for text, state in STATES.items() if text.format(stage) in line)

    started = time.monotonic()
    arguments = ["repro", "--single-item", stage, *["--force"] * force]
    command.dvc(arguments, project, log, what=f"stage {stage!r}", pipeline=pipeline)
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
    pipeline = command.pipeline_key(str(flow_run.name))
    # Called in this thread, not submitted: a cancelled flow then ends its trainer in seconds.
    outcomes = [repro(name, project, force=force, pipeline=pipeline) for name in names]
    _publish(project, outcomes)
    return outcomes


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
    return atomic.read_json(path) if path.is_file() else {}


def main() -> None:
    """Reproduce every stage, on the Prefect server if one answers and with none otherwise."""
    program.run(lambda: reproduce(return_state=True))


if __name__ == "__main__":
    main()
