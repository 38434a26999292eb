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

from pipelines import (
    clone,
    command,
    experiment,
    measurement,
    messages,
    program,
    report,
    run_page,
)
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
    retry_delay_seconds=3,
    retry_condition_fn=command.was_killed,
)
def run_experiment(
    place: Clone, row: str, *, seed: int, guided: bool, pipeline: str
) -> Measurement:
    """Run one experiment, unless the project has it already, and publish it there.

    Raises:
        StageKilledError: A stage was killed.
        RuntimeError: It failed, with the last lines written.
    """
    name = _experiment(row, seed, guided=guided)
    text, params = variant(row, place.project / presets.FOLDER, seed=seed, guided=guided)
    found, speeds = experiment.run(place, name, text, pipeline)
    return measurement.read(place, found, params, speeds, row=row, seed=seed, guided=guided)


@flow(name="ablation", persist_result=False)
def ablate(
    rows: Sequence[str] = ROWS,
    seeds: Sequence[int] = SEEDS,
    name: str = NAME,
    folder: Path = FOLDER,
    project: Path = ROOT,
) -> list[Measurement]:
    """Run presets side by side, with and without guidance and with several seeds, and compare them.

    Each is a DVC experiment. One that fails does not stop the others; the flow fails once the
    report is written.

    Args:
        rows: The presets to compare: their names under `presets/`, or patterns such as `toy/*`.
        seeds: Each preset is trained and sampled once with each of these seeds.
        name: The report's name: lower-case letters, digits and dashes.
        folder: Where the report is written; a relative path starts at the project.
        project: A folder with a `dvc.yaml`, on the worker's machine.
    """
    messages.shorten()
    project = project.resolve()
    chosen = choose(rows, project / presets.FOLDER)
    _check_name(name)
    results: list[Measurement] = []
    failures: dict[tuple[str, int], str] = {}
    with clone.opened(project) as place:
        # Seed by seed, so that an interrupted ablation leaves whole tables.
        for seed in seeds:
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
        ValueError: One of them matches none, there are none, or a preset does not resolve.
    """
    known = presets.names(folder)
    chosen: dict[str, None] = {}
    for pattern in patterns:
        matching = fnmatch.filter(known, pattern)
        if not matching:
            raise ValueError(f"{pattern!r} is no preset and matches none{suggest(pattern, known)}")
        chosen |= dict.fromkeys(matching)
    if not chosen:
        raise ValueError("rows: must name at least one preset, got none")
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
    """Run a row with one seed; with and without guidance differ in sampling alone."""
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
        picture = run_page.embed(project / folder / report.picture(name), run_page.PICTURE_WIDTH)
        shown = report.PICTURE.sub(lambda match: picture, text)
        card = f"{len(rows)} presets, {len(results)} experiments, {len(failures)} failed."
        create_markdown_artifact(shown, key=f"ablation-{name}", description=card)


def _said(failures: dict[tuple[str, int], str]) -> list[str]:
    return [f"{row}, seed {seed}: {reason}" for (row, seed), reason in failures.items()]


def _reason(error: RuntimeError) -> str:
    """Return the last line of a stage; the lines that DVC adds only name the stage."""
    lines = str(error).splitlines()
    return [lines[0], *(line for line in lines if not line.startswith("ERROR: "))][-1]


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"name: must be lower-case letters, digits and dashes, got {name!r}")


def main() -> None:
    """Read the command line and run the flow."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.ablation",
        description="Run presets side by side as DVC experiments, with and without guidance and "
        "with several seeds, and write a report.",
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        metavar="PRESET",
        default=list(ROWS),
        help="names of presets, or patterns such as 'toy/*' (default: Table 1 at toy scale)",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        metavar="SEED",
        default=list(SEEDS),
        help="seeds of training and sampling (default: 0 1 2)",
    )
    parser.add_argument("--name", default=NAME, help="name of the report (default: %(default)s)")
    parser.add_argument(
        "--to",
        type=Path,
        default=ROOT / FOLDER,
        help="folder of the report (default: out/ablation)",
    )
    arguments = parser.parse_args()
    try:  # before a server is started
        choose(arguments.rows, ROOT / presets.FOLDER)
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
