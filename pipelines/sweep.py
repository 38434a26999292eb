"""Look for the best way to sample from trained weights: `python -m pipelines.sweep`.

Each point is a DVC experiment on a smaller, separate sample, in a clone of the project
(`pipelines.clone`). Axis by axis, the values are tried around the best point so far. What is done
already is not done again, so a sweep that was killed goes on.
"""

import argparse
import io
import math
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

from mar.averaging.power import WIDEST
from pipelines import (
    clone,
    command,
    experiment,
    messages,
    program,
    report,
    run_page,
    sweep_report,
)
from pipelines.clone import Clone
from pipelines.sweep_report import Point
from stages.params import find


ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path("out", "sweep")
NAME = "sampling"
# What is varied, in this order: the key of each axis.
KEYS = {
    "guidance": "sample.guidance_scale",
    "temperature": "sample.head.temperature",
    "diffusion_steps": "sample.head.num_steps",
    "steps": "sample.num_steps",
    "weights": "sample.weights",
}
KEPT = "kept"  # stands for averages of these widths, where the training kept some:
WIDTHS = ("0.05", "0.1", "0.15")
IMAGES = 1000
SEED = 1000

Settings = dict[str, Any]  # by axis


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
        "weights": _all_weights(base, weights),
    }
    axes = {axis: values for axis, values in axes.items() if values}
    best = {axis: _get(base, axis) for axis in axes}
    with clone.opened(project) as place:
        search = _Search(place, name, num_images, seed)
        for axis, values in axes.items():
            for value in [best[axis], *(value for value in values if value != best[axis])]:
                search.measure({**best, axis: value}, axis)
            best = search.best(axis) or best
            points = list(search.points.values())
            _report(project / folder, name, base, points, search.failures)
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
        label = f"sweep-{self.name}-{_slug(settings)}"
        pipeline = command.pipeline_key(f"sweep-{self.name}")
        if label not in self.points and label not in self.failures:
            text = variant(self.place.project, settings, num_images=self.num_images, seed=self.seed)
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


def variant(project: Path, settings: Settings, *, num_images: int, seed: int) -> str:
    """Return the project's `params.yaml` with other settings, and a sample of its own."""
    yaml = YAML()
    yaml.width = 200
    content = yaml.load((project / clone.PARAMS).read_text(encoding="utf-8"))
    changes = {KEYS[axis]: value for axis, value in settings.items()}
    changes |= {"sample.num_images": num_images, "sample.seed": seed}
    for key, value in changes.items():
        *parents, last = key.split(".")
        place = content
        for parent in parents:
            place = place[parent]
        place[last] = value
    text = io.StringIO()
    yaml.dump(content, text)
    return text.getvalue()


def proposal(base: Mapping[str, Any], point: Point) -> str:
    """Return the command that takes a point's settings to the long run."""
    changes = [
        f"-S {_quoted(f'{KEYS[axis]}={_shown(value)}')}"
        for axis, value in point.settings.items()
        if value != _get(base, axis)
    ]
    if not changes:
        return "params.yaml has the best settings that were tried: dvc repro"
    return f"dvc exp run {' '.join(changes)}"


def check_name(name: str) -> None:
    """Refuse a name that is no part of a file's and an experiment's.

    Raises:
        ValueError: It has other characters.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"name: must be lower-case letters, digits and dashes, got {name!r}")


def _get(base: Mapping[str, Any], axis: str) -> Any:
    """Return what params.yaml says of an axis.

    Raises:
        ValueError: It has no such key.
    """
    found = find(base, KEYS[axis])
    if found is None:
        raise ValueError(f"{axis}: params.yaml has no {KEYS[axis]}; give an empty list")
    return found


def _all_weights(base: Mapping[str, Any], texts: Sequence[str]) -> list[Any]:
    """Return values of sample.weights.

    Raises:
        ValueError: One is none, or an average of a training that kept none.
    """
    kept = find(base, "training.averages") is not None
    widths = WIDTHS if kept else ()
    texts = [each for text in texts for each in (widths if text == KEPT else (text,))]
    values = [_weights(text) for text in texts]
    for text, value in zip(texts, values, strict=True):
        if isinstance(value, dict) and not kept:
            raise ValueError(
                f"weights: must be ema or raw, as training.averages is null, got {text!r}"
            )
    return values


def _weights(text: str) -> Any:
    """Return a value of sample.weights: a name, or the average of a relative width or a decay.

    Raises:
        ValueError: It is neither.
    """
    if text in ("ema", "raw"):
        return text
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if 0 < number <= WIDEST:
        return {"width": number}
    if 0.5 <= number < 1:
        return {"decay": number}
    raise ValueError(
        f"weights: must be ema, raw, {KEPT}, a relative width below {WIDEST:.3f} or a decay from "
        f"0.5 on, got {text!r}"
    )


def _slug(settings: Settings) -> str:
    return "-".join(f"{axis[:1]}{_plain(value)}" for axis, value in settings.items())


def _plain(value: Any) -> str:
    return re.sub(r"[^\w.]+", "", _shown(value))


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        ((key, number),) = value.items()
        return f"{{{key}: {number}}}"
    return str(value)


def _quoted(text: str) -> str:
    return f"'{text}'" if "{" in text else text


def _report(
    folder: Path,
    name: str,
    base: Mapping[str, Any],
    points: Sequence[Point],
    failures: Mapping[str, str],
) -> None:
    """Write the report of what there is so far, and show it as an artifact of the flow run."""
    if not points:
        return
    best = min(points, key=lambda point: point.distance)
    command_line = proposal(base, best)
    text = sweep_report.write(folder, name, points, command_line, failures)
    get_run_logger().info("best so far: %s %.4g; %s", best.score, best.distance, command_line)
    picture = run_page.embed(folder / sweep_report.picture(name), run_page.PICTURE_WIDTH)
    shown = report.PICTURE.sub(lambda match: picture, text)
    create_markdown_artifact(shown, key=f"sweep-{name}", description=command_line)


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
