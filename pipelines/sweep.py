"""Look for the best way to sample from trained weights: `python -m pipelines.sweep`.

Each point is a DVC experiment on a smaller, separate sample, in a clone of the project
(`pipelines.clone`). Axis by axis, the values are tried around the best point so far. What is done
already is not done again, so a sweep that was killed goes on.
"""

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
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
    messages,
    program,
    report,
    report_run,
    run_page,
    sweep_axes,
    sweep_report,
)
from pipelines.clone import Clone
from pipelines.report_run import ReportRun
from pipelines.sweep_axes import KEPT, KEYS, Settings
from pipelines.sweep_report import Point


ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path("out", "sweep")
NAME = "sampling"
IMAGES = 1000
SEED = 1000


@task(
    task_run_name="{name}",
    cache_policy=NO_CACHE,  # DVC alone knows whether a result is still good
    persist_result=False,
    retries=2,
    retry_delay_seconds=3,
    retry_condition_fn=command.was_killed,
)
def run_point(place: Clone, name: str, text: str, pipeline: str, settings: Settings) -> Point:
    """Run the experiment of one point, unless the project has it already.

    Raises:
        StageKilledError: A stage was killed.
        RuntimeError: It failed, with the last lines written.
    """
    reference, speeds = experiment.run(place, name, text, pipeline)
    rate = speeds.get("sample", {}).get("images_per_second")
    return sweep_report.read(
        settings, place.metrics(reference, "evaluate"), name, 1000 / rate if rate else None
    )


@flow(name="sweep", persist_result=False)
def sweep(
    guidance: Sequence[float] = (1.0, 1.15, 1.5, 2.0),
    temperature: Sequence[float] = (0.9, 1.0, 1.1, 1.2),
    diffusion_steps: Sequence[int] = (10, 25, 50, 100),
    steps: Sequence[int] = (4, 8, 16),
    weights: Sequence[str] = ("raw", "ema", KEPT),
    num_images: int = IMAGES,
    seed: int = SEED,
    name: str = NAME,
    folder: Path = FOLDER,
    project: Path = ROOT,
) -> list[Point]:
    """Try ways to sample from the trained weights, and propose the best for the long run.

    Axis by axis, in the order of the parameters, each value is tried around the best point so far,
    which begins at params.yaml. An empty list leaves an axis as it is. A point that fails does not
    stop the others; the flow fails once the report is written.

    Args:
        guidance: Values of sample.guidance_scale.
        temperature: Values of sample.head.temperature.
        diffusion_steps: Values of sample.head.num_steps, the denoising steps of a token.
        steps: Values of sample.num_steps, the generation steps.
        weights: Values of sample.weights: ema, raw, and averages of the training, as relative
            widths (0.1) or decays (0.999); "kept" is a few widths, where the training kept any.
        num_images: Images of a point; fewer than the long run's.
        seed: Of the points' samples, which must not be that of the long run.
        name: The report's name, and a part of the experiments': lower-case letters, digits, dashes.
        folder: Where the report is written; a relative path starts at the project.
        project: A folder with a `dvc.yaml`, on the worker's machine.
    """
    messages.shorten()
    project = project.resolve()
    base = YAML(typ="safe").load((project / clone.PARAMS).read_text(encoding="utf-8"))
    if seed == base["sample"]["seed"]:
        raise ValueError(f"seed: must differ from sample.seed, that of the long run, got {seed}")
    check_name(name)
    axes: dict[str, list[Any]] = {
        "guidance": list(guidance),
        "temperature": list(temperature),
        "diffusion_steps": list(diffusion_steps),
        "steps": list(steps),
        "weights": sweep_axes.all_weights(base, weights),
    }
    axes = {axis: values for axis, values in axes.items() if values}
    best = {axis: sweep_axes.get(base, axis) for axis in axes}
    run = _report_run(project, name, base, axes, num_images=num_images, seed=seed)
    with clone.opened(project) as place, report_run.tracked(run):
        search = _Search(place, name, num_images, seed)
        for axis, values in axes.items():
            for value in [best[axis], *(value for value in values if value != best[axis])]:
                search.measure({**best, axis: value}, axis)
            best = search.best(axis) or best
            points = list(search.points.values())
            _report(project / folder, name, base, points, search.failures, run)
        if failures := search.failures:
            said = [f"{label}: {reason}" for label, reason in failures.items()]
            raise RuntimeError("\n".join([f"{len(failures)} failed:", *said]))
    return list(search.points.values())


@dataclass
class _Search:
    """The points measured so far, and those that failed, by the names of their experiments."""

    place: Clone
    name: str
    num_images: int
    seed: int
    points: dict[str, Point] = field(default_factory=dict[str, Point])
    failures: dict[str, str] = field(default_factory=dict[str, str])

    def measure(self, settings: Settings, axis: str) -> None:
        """Measure a point, if it is a new one, and note the axis along which it lies."""
        label = f"sweep-{self.name}-{sweep_axes.slug(settings)}"
        pipeline = command.pipeline_key(f"sweep-{self.name}")
        if label not in self.points and label not in self.failures:
            text = sweep_axes.variant(
                self.place.project, settings, num_images=self.num_images, seed=self.seed
            )
            try:
                # In this thread: a cancelled flow then ends its stage in seconds.
                self.points[label] = run_point(self.place, label, text, pipeline, settings)
            except RuntimeError as error:
                get_run_logger().error("%s", error)
                self.failures[label] = str(error).splitlines()[-1]
        if label in self.points:
            self.points[label].axes.append(axis)

    def best(self, axis: str) -> Settings | None:
        """Return the best settings along an axis, of all if none was measured, or None."""
        points = list(self.points.values())
        along = [point for point in points if axis in point.axes] or points
        return min(along, key=lambda point: point.distance).settings if along else None


def check_name(name: str) -> None:
    """Refuse a name that is no part of a file's and an experiment's.

    Raises:
        ValueError: It has other characters.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"name: must be lower-case letters, digits and dashes, got {name!r}")


def _report_run(
    project: Path,
    name: str,
    base: Mapping[str, Any],
    axes: Mapping[str, Sequence[Any]],
    *,
    num_images: int,
    seed: int,
) -> ReportRun:
    """Return the MLflow run of a sweep; one that goes on has the same."""
    tried = {KEYS[axis]: ", ".join(map(sweep_report.shown, them)) for axis, them in axes.items()}
    params = {**tried, "sample.num_images": str(num_images), "sample.seed": str(seed)}
    content = json.dumps([base, params], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    return ReportRun(project, f"sweep-{name}-{digest}", f"sweep {name}", params)


def _report(
    folder: Path,
    name: str,
    base: Mapping[str, Any],
    points: Sequence[Point],
    failures: Mapping[str, str],
    run: ReportRun,
) -> None:
    """Write the report of what there is so far, and show it on the pages of its two runs."""
    if not points:
        return
    best = min(points, key=lambda point: point.distance)
    command_line = sweep_axes.proposal(base, best.settings)
    text = sweep_report.write(folder, name, points, command_line, failures)
    get_run_logger().info("best so far: %s %.4g; %s", best.score, best.distance, command_line)
    files = sweep_report.files(folder, name)
    picture = run_page.embed(files[-1], run_page.PICTURE_WIDTH)
    shown = report.PICTURE.sub(lambda match: picture, text)
    create_markdown_artifact(shown, key=f"sweep-{name}", description=command_line)
    numbers = {best.score: best.distance}
    run.log(note=report.PICTURE.sub("", text), numbers=numbers, step=len(points), files=files)


def main() -> None:
    """Read the command line and run the flow."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.sweep",
        description="Look for the best way to sample from the trained weights: each point is a DVC "
        "experiment on a smaller, separate sample.",
    )
    add = parser.add_argument
    defaults = {key: each.default for key, each in signature(sweep.fn).parameters.items()}
    kinds = {"guidance": float, "temperature": float, "diffusion_steps": int, "steps": int}
    for axis, key in KEYS.items():
        tried = " ".join(map(str, defaults[axis]))
        add(f"--{axis.partition('_')[0]}", dest=axis, nargs="*", type=kinds.get(axis, str),
            metavar="VALUE", default=defaults[axis], help=f"values of {key} (default: {tried}); "
            "none to leave it as it is")  # fmt: skip
    add("--images", type=int, default=IMAGES, help="images of a point (default: %(default)s)")
    add("--seed", type=int, default=SEED, help="of their noise (default: %(default)s)")
    add("--name", default=NAME, help="name of the report (default: %(default)s)")
    options = parser.parse_args()
    try:  # before a server is started
        check_name(options.name)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(1) from None
    axes = {axis: getattr(options, axis) for axis in KEYS}
    program.run(
        lambda: sweep(
            **axes,
            num_images=options.images,
            seed=options.seed,
            name=options.name,
            return_state=True,
        )
    )


if __name__ == "__main__":
    main()
