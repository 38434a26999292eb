"""Bring the stages of `dvc.yaml` up to date: DVC decides which have to run, Prefect starts them.

`python -m pipelines.reproduce` needs no server; `prefect.yaml` describes the deployment.
"""

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from pipelines import command, graph, messages, program, run_page
from pipelines.run_page import Outcome


ROOT = Path(__file__).resolve().parents[1]

# What DVC prints about a stage that it brings up to date, and what that means.
STATES = {"Running stage '{}'": "ran", "Stage '{}' is cached": "restored from cache"}
MLFLOW_PAGE = re.compile(r"runs: (https?://\S+)")  # printed by the first stage that runs


@task(
    task_run_name="{stage}",
    cache_policy=NO_CACHE,  # DVC alone knows whether a result is still good
    persist_result=False,
    retries=2,
    retry_delay_seconds=3,
    retry_condition_fn=command.was_killed,
)
def repro(stage: str, project: Path, *, force: bool, pipeline: str) -> Outcome:
    """Bring one stage up to date: `dvc repro --single-item STAGE`.

    Raises:
        StageKilledError: It was killed.
        RuntimeError: It failed, with the last lines that it wrote.
    """
    states: list[str] = []
    pages: list[str] = []
    logger = get_run_logger()

    def log(line: str) -> None:
        logger.info("%s", line)
        states.extend(state for text, state in STATES.items() if text.format(stage) in line)
        pages.extend(MLFLOW_PAGE.findall(line))

    started = time.monotonic()
    arguments = ["repro", "--single-item", stage, *["--force"] * force]
    command.dvc(arguments, project, log, what=f"stage {stage!r}", pipeline=pipeline)
    seconds = time.monotonic() - started
    return Outcome(stage, [*states, "up to date"][0], seconds, [*pages, ""][0])


@flow(persist_result=False)
def reproduce(
    stages: Sequence[str] = (), force: bool = False, project: Path = ROOT
) -> list[Outcome]:
    """Bring the stages of the pipeline up to date, one after the other, as `dvc repro` does.

    A stage runs only if its code, its parameters or its inputs have changed. The artifact `result`
    then shows the scores, generated images, and what became of each stage.

    Args:
        stages: The stages to bring up to date, with all that they depend on. Empty: every stage.
        force: Run them even if nothing has changed.
        project: A folder with a `dvc.yaml`, on the worker's machine.
    """
    messages.shorten()
    project = project.resolve()
    names = graph.order(graph.read(project), stages)
    pipeline = command.pipeline_key(str(flow_run.name))
    outcomes: list[Outcome] = []
    for name in names:
        started = time.monotonic()
        try:
            # Called in this thread, not submitted: a cancelled flow then ends its trainer at once.
            outcomes.append(repro(name, project, force=force, pipeline=pipeline))
        except RuntimeError as error:
            failed = Outcome(name, "failed", time.monotonic() - started)
            rest = [Outcome(other, "not reached") for other in names[len(outcomes) + 1 :]]
            run_page.publish(project, [*outcomes, failed, *rest], pipeline, str(error))
            raise
    run_page.publish(project, outcomes, pipeline)
    return outcomes


def main() -> None:
    """Read the command line and run the flow."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.reproduce",
        description="Bring the stages of dvc.yaml up to date, as a Prefect flow: on the Prefect "
        "server if one answers, and with none otherwise.",
    )
    parser.add_argument(
        "stages",
        nargs="*",
        metavar="STAGE",
        help="a stage to bring up to date, with all that it depends on (default: every stage)",
    )
    parser.add_argument("--force", action="store_true", help="run them even if nothing has changed")
    arguments = parser.parse_args()
    try:  # before a server is started
        graph.order(graph.read(ROOT), arguments.stages)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(1) from None
    program.run(lambda: reproduce(arguments.stages, arguments.force, return_state=True))


if __name__ == "__main__":
    main()
