"""The report of a sweep over ways to sample: a table, a plot for each axis, and the numbers."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mar.evaluation.score_names import SPREAD, parts
from mar.files import atomic
from pipelines.measurement import DISTANCES
from pipelines.report import PLUS_MINUS


# As the paper's figures: 4 (steps of the diffusion), 5 (temperature), 6 (speed and accuracy).
TITLES = {
    "guidance": "guidance scale",
    "temperature": "temperature (the paper's Figure 5)",
    "diffusion_steps": "denoising steps of a token (the paper's Figure 4)",
    "steps": "generation steps, ms an image (the paper's Figure 6)",
    "weights": "weights",
}
COLOURS = ("tab:blue", "tab:orange")


@dataclass(frozen=True)
class Point:
    """What was measured with some settings.

    Attributes:
        settings: By axis.
        experiment: The name of the DVC experiment.
        score: The name of the distance, which says by which features and of how many images.
        distance: The Frechet distance to real images.
        spread: Its standard deviation, if it was measured.
        quality: The Inception score, if the extractor gives one.
        quality_spread: Its standard deviation, if it was measured.
        quality_name: What that is.
        sampling_ms: Milliseconds for an image; none if the images were restored.
        axes: Along which it lies.
    """

    settings: dict[str, Any]
    experiment: str
    score: str
    distance: float
    spread: float | None
    quality: float | None
    quality_spread: float | None
    quality_name: str
    sampling_ms: float | None
    axes: list[str] = field(default_factory=list[str])


def read(
    settings: dict[str, Any], metrics: Mapping[str, Any], experiment: str, ms: float | None
) -> Point:
    """Read a point from the `metrics.json` of the stage `evaluate`."""
    scores: Mapping[str, float] = metrics["samples"]
    score = next(name for name in scores if parts(name).base in DISTANCES)
    kinds = ("inception_score", "classifier_is")
    quality = next((name for name in scores if parts(name).base in kinds), "")
    return Point(
        settings=settings,
        experiment=experiment,
        score=score,
        distance=scores[score],
        spread=scores.get(score + SPREAD),
        quality=scores.get(quality),
        quality_spread=scores.get(quality + SPREAD),
        quality_name=quality,
        sampling_ms=ms,
    )


def write(
    folder: Path, name: str, points: Sequence[Point], proposal: str, failures: Mapping[str, str]
) -> str:
    """Write the report (`files`), and return its page, as Markdown."""
    text = markdown(name, points, proposal, failures)
    numbers, page, picture = files(folder, name)
    _draw(picture, points)
    atomic.write_text(numbers, table(points))
    atomic.write_text(page, text)
    return text


def files(folder: Path, name: str) -> list[Path]:
    """Return the files of a report: its numbers, its page, its picture."""
    return [folder / f"sweep-{name}{suffix}" for suffix in (".csv", ".md", ".png")]


def table(points: Sequence[Point]) -> str:
    """Return all points as CSV, one line each."""
    content = io.StringIO()
    rows = [
        {
            **{axis: shown(value) for axis, value in point.settings.items()},
            point.score: point.distance,
            point.score + SPREAD: point.spread,
            **_quality(point),
            "sampling_ms": point.sampling_ms,
            "axes": " ".join(point.axes),
            "experiment": point.experiment,
        }
        for point in points
    ]
    writer = csv.DictWriter(content, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return content.getvalue()


def _quality(point: Point) -> dict[str, float | None]:
    if not point.quality_name:
        return {}
    return {
        point.quality_name: point.quality,
        point.quality_name + SPREAD: point.quality_spread,
    }


def markdown(name: str, points: Sequence[Point], proposal: str, failures: Mapping[str, str]) -> str:
    """Return the points of each axis, best first, and the command for the long run."""
    axes = [axis for axis in TITLES if any(axis in point.axes for point in points)]
    first = points[0]
    lines = [
        f"{len(points)} points, by `{first.score}` (lower is better). The best, for the long run:",
        "",
        f"    {proposal}",
        "",
        f"| {' | '.join(first.settings)} | `{first.score}` | {first.quality_name or 'quality'} "
        "| ms an image | varied |",
        f"|{'---|' * (len(first.settings) + 4)}",
    ]
    for point in sorted(points, key=lambda point: point.distance):
        cells = [shown(value) for value in point.settings.values()]
        cells.append(f"{point.distance:.3f}{_plus_minus(point.spread)}")
        cells.append(
            ""
            if point.quality is None
            else f"{point.quality:.2f}{_plus_minus(point.quality_spread)}"
        )
        cells.append("" if point.sampling_ms is None else f"{point.sampling_ms:.1f}")
        cells.append(", ".join(point.axes))
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", _not_told_apart(points), "", f"![{', '.join(axes)}](sweep-{name}.png)"]
    failed = [f"- {label}: {reason}" for label, reason in failures.items()]
    return "\n".join([*lines, *(["", "Failed:", "", *failed] if failed else [])]) + "\n"


def _plus_minus(spread: float | None) -> str:
    return "" if spread is None else f" {PLUS_MINUS} {spread:.2g}"


def _not_told_apart(points: Sequence[Point]) -> str:
    """Say how many points are as good as the best, as far as the spread of samples tells."""
    best = min(points, key=lambda point: point.distance)
    if best.spread is None:
        return "No spread was measured (evaluate.bootstrap is 0): small differences say nothing."
    alike = sum(point.distance - best.distance < 2 * best.spread for point in points) - 1
    return f"{alike} other points are within two standard deviations of the best: not told apart."


def shown(value: Any) -> str:
    """Return a setting as text."""
    if isinstance(value, dict):
        return " ".join(f"{key} {number}" for key, number in value.items())
    return str(value)


def _draw(path: Path, points: Sequence[Point]) -> None:
    """Plot distance and quality along each axis, all other settings being equal."""
    axes = [axis for axis in TITLES if sum(axis in point.axes for point in points) > 1]
    figure = Figure(figsize=(9, 0.4 + 2.3 * max(len(axes), 1)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(max(len(axes), 1), 2, squeeze=False)
    for axis, row in zip(axes, panels, strict=False):
        along = [point for point in points if axis in point.axes]
        places, labels = _places(axis, along)
        _plot(row[0], places, [p.distance for p in along], along[0].score, COLOURS[0],
              [p.spread for p in along])  # fmt: skip
        qualities = [p.quality for p in along]
        if None not in qualities:
            _plot(row[1], places, qualities, along[0].quality_name, COLOURS[1],
                  [p.quality_spread for p in along])  # fmt: skip
        for panel in row:
            panel.set_xlabel(TITLES[axis])
            if labels is not None:
                panel.set_xticks(places, labels)
    with atomic.replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=110)


def _places(axis: str, along: Sequence[Point]) -> tuple[list[float], list[str] | None]:
    """Return where points lie on an axis, and their names where it has no numbers."""
    if axis == "steps":
        times = [point.sampling_ms for point in along]
        if None not in times:
            names = [f"{p.settings[axis]}\n({p.sampling_ms:.0f} ms)" for p in along]
            return [float(time or 0) for time in times], names
    if axis == "weights":
        return [float(n) for n in range(len(along))], [shown(p.settings[axis]) for p in along]
    return [float(point.settings[axis]) for point in along], None


def _plot(
    panel: Axes,
    places: Sequence[float],
    values: Sequence[Any],
    label: str,
    colour: str,
    spreads: Sequence[float | None],
) -> None:
    order = sorted(range(len(places)), key=lambda index: places[index])
    x, y = [places[i] for i in order], [values[i] for i in order]
    panel.plot(x, y, "o-", color=colour, markersize=4, linewidth=1)
    bars = [spreads[i] or 0.0 for i in order]
    panel.errorbar(x, y, bars, fmt="none", color=colour, alpha=0.4)
    panel.set_ylabel(label)
    panel.grid(alpha=0.3)
