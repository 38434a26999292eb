"""Run presets side by side as DVC experiments: `python -m pipelines.ablation`.

By default the paper's Table 1 at toy scale, three seeds of each row. Each experiment runs in a
clone of the project (`pipelines.clone`); what is done already is not done again.
"""

import argparse
import fnmatch
import io
import re
import sys
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from ruamel.yaml import YAML

from pipelines import clone, command, measurement, program, report
from pipelines.claims import HEADS, VARIANTS
from pipelines.clone import Clone
from pipelines.measurement import Measurement
from stages import presets
from stages.params import suggest


ROOT = Path(__file__).resolve().parents[1]
ROWS = (
    *(f"toy/table1-{variant}-{head}" for variant, head in product(VARIANTS, HEADS)),
    "toy/table2-vq16",
    "toy/l2",
    "toy/flow",
)
SEEDS = (0, 1, 2)
NAME = "table1"
FOLDER = Path("out", "ablation")


@task(
    task_run_name="{row} seed {seed} guided {guided}",
    cache_policy=NO_CACHE,  # DVC alone knows whether a result is still good
    persist_result=False,
    retries=2,
    retry_delay_seconds=10,
    retry_condition_fn=command.was_killed,
)
def run_experiment(
    place: Clone, row: str, *, seed: int, guided: bool, pipeline: str
) -> Measurement:
    """Run one experiment, unless it is there already, and make it one of the project's.

    Raises:
        StageKilledError: A stage was killed.
        RuntimeError: It failed, with the last lines written.
    """
    name = _experiment(row, seed, guided=guided)
    text, params = variant(row, place.project / presets.FOLDER, seed=seed, guided=guided)
    place.write_params(text)
    logger = get_run_logger()
    found = place.find(name)
    if found is None:
        place.discard(name)
        command.dvc(
            ["exp", "run", "--name", name],
            place.folder,
            lambda line: logger.info("%s", line),
            what=f"experiment {name!r}",
            pipeline=pipeline,
            MAR_ROOT=str(place.project),
        )
        found = place.find(name)
        if found is None:
            raise RuntimeError(f"experiment {name!r}: DVC kept no experiment of this name")
    else:
        logger.info("%s is there already", name)
    place.publish(found)
    return measurement.read(place, found, params, row=row, seed=seed, guided=guided)


@flow(name="ablation", persist_result=False)
def ablate(
    rows: list[str] | None = None,
    seeds: list[int] | None = None,
    name: str = NAME,
    folder: Path = FOLDER,
    project: Path | None = None,
) -> list[Measurement]:
    """Run every row with every seed, without guidance and with, and write the report.

    A row that fails does not stop the others; the flow fails once the report is written.

    Args:
        rows: Presets, or patterns of their names; the toy Table 1 by default.
        seeds: Of training and sampling; 0, 1 and 2 by default.
        name: Of the report.
        folder: Where the report goes, in the project if it is not absolute.
        project: A folder with a `dvc.yaml`; this repository by default.
    """
    project = (project or ROOT).resolve()
    chosen = choose(rows or ROWS, project / presets.FOLDER)
    _check_name(name)
    results: list[Measurement] = []
    failures: dict[tuple[str, int], str] = {}
    with clone.opened(project) as place:
        # Seed by seed, so that an interrupted ablation leaves whole tables.
        for seed in seeds or SEEDS:
            for row in chosen:
                try:
                    _run_row(place, row, seed, results)
                except RuntimeError as error:
                    get_run_logger().error("%s", error)
                    failures[row, seed] = _reason(error)
            _report(project, folder, name, results, failures)
    if failures:
        raise RuntimeError("\n".join([f"{len(failures)} failed:", *_said(failures)]))
    return results


def choose(patterns: Iterable[str], folder: Path) -> list[str]:
    """Return the presets of some names and patterns, each once.

    Raises:
        ValueError: one of them matches none, or a preset does not resolve.
    """
    known = presets.names(folder)
    chosen: dict[str, None] = {}
    for pattern in patterns:
        matching = fnmatch.filter(known, pattern)
        if not matching:
            raise ValueError(f"{pattern!r} is no preset and matches none{suggest(pattern, known)}")
        chosen |= dict.fromkeys(matching)
    for name in chosen:
        presets.resolve(name, folder)
    return list(chosen)


def variant(row: str, folder: Path, *, seed: int, guided: bool) -> tuple[str, dict[str, Any]]:
    """Return a preset with a seed, with its own guidance or none: as text, and parsed."""
    yaml = YAML()
    yaml.width = 200
    content = yaml.load(presets.resolve(row, folder))
    content["training"]["seed"] = content["sample"]["seed"] = seed
    if not guided:
        content["sample"]["guidance_scale"] = 1.0
    text = io.StringIO()
    yaml.dump(content, text)
    return text.getvalue(), content


def _run_row(place: Clone, row: str, seed: int, results: list[Measurement]) -> None:
    """Add what a row measures with a seed; sampling alone differs with guidance."""
    pipeline = command.pipeline_key(_experiment(row, seed, guided=False))
    _, params = variant(row, place.project / presets.FOLDER, seed=seed, guided=True)
    for guided in (False, True) if params["sample"]["guidance_scale"] != 1 else (False,):
        # Called in this thread, not submitted: a cancelled flow then ends its trainer in seconds.
        results.append(run_experiment(place, row, seed=seed, guided=guided, pipeline=pipeline))


def _experiment(row: str, seed: int, *, guided: bool) -> str:
    return f"{row.replace('/', '-')}-seed{seed}{'-guided' if guided else ''}"


def _report(
    project: Path,
    folder: Path,
    name: str,
    results: Sequence[Measurement],
    failures: dict[tuple[str, int], str],
) -> None:
    """Write the report of what there is so far, and show it as an artifact of the flow run."""
    if results:
        rows = measurement.rows(results, project / presets.FOLDER)
        text = report.write(project / folder, name, rows, _said(failures))
        create_markdown_artifact(text, key=f"ablation-{name}", description="Rows and claims.")


def _said(failures: dict[tuple[str, int], str]) -> list[str]:
    return [f"{row}, seed {seed}: {reason}" for (row, seed), reason in failures.items()]


def _reason(error: RuntimeError) -> str:
    """Return the last line that a stage wrote; DVC's own, below it, says only which stage."""
    lines = str(error).splitlines()
    return [lines[0], *(line for line in lines if not line.startswith("ERROR: "))][-1]


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"name: must be lower-case letters, digits and dashes, got {name!r}")


def main() -> None:
    """Read the command line and run the flow."""
    parser = argparse.ArgumentParser(description="Run presets side by side as DVC experiments.")
    parser.add_argument("--rows", nargs="+", metavar="PRESET", help="names or patterns of presets")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", default=list(SEEDS))
    parser.add_argument("--name", default=NAME, help="of the report")
    parser.add_argument("--to", type=Path, default=ROOT / FOLDER, help="the report's folder")
    arguments = parser.parse_args()
    try:  # before a server is started
        choose(arguments.rows or ROWS, ROOT / presets.FOLDER)
        _check_name(arguments.name)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(1) from None
    program.run(
        lambda: ablate(
            arguments.rows,
            arguments.seeds,
            arguments.name,
            arguments.to.absolute(),
            return_state=True,
        )
    )


if __name__ == "__main__":
    main()
