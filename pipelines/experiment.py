"""Run one DVC experiment in a clone of a project, or find it there already."""

import hashlib
import re

from prefect import get_run_logger

from pipelines import command
from pipelines.clone import Clone


RUNNING = re.compile(r"Running stage '(\w+)'")  # printed by DVC


def run(
    place: Clone, name: str, text: str, pipeline: str
) -> tuple[str, dict[str, dict[str, float]]]:
    """Run an experiment, unless the project has it already, and publish it there.

    Args:
        place: The clone.
        name: Of the experiment.
        text: The whole of its `params.yaml`.
        pipeline: A key that its stages share; MLflow groups their runs by it.

    Returns:
        Its git reference, and the speeds of the stages that ran here.

    Raises:
        StageKilledError: A stage was killed.
        RuntimeError: It failed, with the last lines written.
    """
    place.write_params(text)
    key = f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"  # of its speeds
    found = place.find(name)
    if found is None:
        place.discard(name)
        _run_dvc(place, name, key, pipeline)
        found = place.find(name)
        if found is None:
            raise RuntimeError(f"experiment {name!r}: DVC kept no experiment of this name")
    else:
        get_run_logger().info("%s is there already", name)
    place.publish(found)
    return found, place.speeds(key)


def _run_dvc(place: Clone, name: str, key: str, pipeline: str) -> None:
    """Run an experiment, and note the speeds of the stages that ran, even if one failed."""
    ran: list[str] = []
    logger = get_run_logger()

    def log(line: str) -> None:
        logger.info("%s", line)
        ran.extend(RUNNING.findall(line))

    try:
        command.dvc(
            ["exp", "run", "--name", name],
            place.folder,
            log,
            what=f"experiment {name!r}",
            pipeline=pipeline,
            MAR_ROOT=str(place.project),
        )
    finally:
        place.note_speeds(key, ran)
