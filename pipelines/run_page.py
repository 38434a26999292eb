"""What a flow run shows on its page: one artifact with the scores, the samples and the stages."""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image
from prefect.artifacts import create_markdown_artifact

from mar.evaluation.score_names import find, parts
from mar.files import atomic


KEY = "result"
PICTURE_WIDTH, CARD_WIDTH = 1000, 400  # pixels of the sample grid: in the artifact, on its card
LABELS = {
    "fid": "FID (lower is better)",
    "fd_dinov2": "DINOv2 distance (lower is better)",
    "is": "Inception Score (higher is better)",
    "kid": "KID (lower is better)",
    "sfid": "sFID (lower is better)",
    "inf": "FID of infinitely many images",
    "mmd": "MMD, Gaussian kernel (lower is better)",
    "precision": "precision (higher is better)",
    "recall": "recall (higher is better)",
    "accuracy": "accuracy: images that are recognised as their class",
}
PLUS_MINUS = "\u00b1"
HEADLINE = ("fid", "fd_dinov2", "accuracy")


@dataclass(frozen=True)
class Outcome:
    """What became of a stage.

    Attributes:
        stage: Its name in `dvc.yaml`.
        state: "ran", "restored from cache", "up to date", "failed" or "not reached".
        seconds: How long DVC took for it.
        mlflow_page: The address that the stage gave for its runs, if it ran and gave one.
    """

    stage: str
    state: str
    seconds: float = 0.0
    mlflow_page: str = ""


def publish(
    project: Path, outcomes: Sequence[Outcome], pipeline: str, failure: str = ""
) -> tuple[str, str]:
    """Make the artifact of a flow run, and return its text and the text of its card.

    Args:
        project: Whose stages they are.
        outcomes: Of all stages that were asked for.
        pipeline: The key that their MLflow runs share.
        failure: Why the run ended early, if it did.
    """
    made = {outcome.stage for outcome in outcomes if outcome.state not in ("failed", "not reached")}
    scores = _metrics(project, "evaluate") if "evaluate" in made else {}
    grid = project / "out" / "sample" / "grid.png"
    picture = grid if "sample" in made and grid.is_file() else None
    text = "\n\n".join(
        [
            *([f"## Failed\n\n```\n{failure}\n```"] if failure else []),
            *([_scores(scores)] if scores else []),
            _stages(outcomes),
            _runs(project, outcomes, pipeline),
            *([f"## Samples\n\n{embed(picture, PICTURE_WIDTH)}"] if picture else []),
        ]
    )
    card = failure.splitlines()[0] if failure else _headline(scores) or _count(outcomes)
    if picture:  # on the same line: the page shows the first line alone
        card = f"{card} {embed(picture, CARD_WIDTH)}"
    create_markdown_artifact(text, key=KEY, description=card)
    return text, card


def embed(path: Path, width: int) -> str:
    """Return a picture as Markdown that holds the picture itself, at most so wide.

    A Prefect server has no place for files, and a browser opens none of the project's.
    """
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    small.thumbnail((width, 2 * width))
    content = io.BytesIO()
    small.save(content, "PNG")
    kind = "png"
    if len(content.getvalue()) > 200_000:  # photographs
        content, kind = io.BytesIO(), "jpeg"
        small.save(content, "JPEG", quality=85)
    data = base64.b64encode(content.getvalue()).decode("ascii")
    return f"![{path.stem}](data:image/{kind};base64,{data})"


def duration(seconds: float) -> str:
    """Return a duration as people say it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _scores(scores: dict[str, Any]) -> str:
    count = scores["num_reference"]
    real = "published statistics" if count is None else f"{count:,} real ones"
    lines = [
        "## Scores",
        "",
        f"{scores['num_samples']:,} generated images, and {scores['num_held_out']:,} real ones "
        f"that were held out, each against {real}. Features: "
        f"`{scores['extractor']}`; reference: `{scores['reference']}`.",
        "",
        "| score | generated | real, held out |",
        "|---|---:|---:|",
    ]
    for name in scores["samples"]:
        base, num_images, is_spread = parts(name)
        if is_spread:
            continue
        label = _label(base) + (f", of {num_images:,} images" if num_images else "")
        cells = [_with_spread(scores[group], base) for group in ("samples", "held_out")]
        lines.append(f"| {label} | {cells[0]} | {cells[1]} |")
    if scores.get("warnings"):
        lines += ["", scores["warnings"]]
    return "\n".join(lines)


def _with_spread(scores: dict[str, float], base: str) -> str:
    spread = find(scores, base, spread=True)
    after = "" if spread is None else f" {PLUS_MINUS} {_number(base, spread)}"
    return f"{_number(base, find(scores, base))}{after}"


def _stages(outcomes: Sequence[Outcome]) -> str:
    lines = ["## Stages", "", "| stage | what became of it | time |", "|---|---|---:|"]
    for outcome in outcomes:
        state = f"**{outcome.state}**" if outcome.state in ("ran", "failed") else outcome.state
        time = duration(outcome.seconds) if outcome.state != "not reached" else ""
        lines.append(f"| `{outcome.stage}` | {state} | {time} |")
    total = duration(sum(outcome.seconds for outcome in outcomes))
    return "\n".join([*lines, f"| together | {_count(outcomes)} | {total} |"])


def _runs(project: Path, outcomes: Sequence[Outcome], pipeline: str) -> str:
    """Return where the MLflow runs of this flow run are."""
    if not any(outcome.state in ("ran", "failed") for outcome in outcomes):
        return "## MLflow\n\nNo stage had to run, so there is no new run."
    query = f"tags.`mar.pipeline` = '{pipeline}'"
    page = next((outcome.mlflow_page for outcome in outcomes if outcome.mlflow_page), "")
    if not page:
        return (
            f"## MLflow\n\n`mlflow ui`, typed in `{project}`, shows the runs. This filter finds "
            f"those of this flow run:\n\n```\n{query}\n```"
        )
    link = f"{page}{'&' if '?' in page else '?'}searchFilter={quote(query)}"
    local = "//127.0.0.1:" in page or "//localhost:" in page
    note = f" The link works while `mlflow ui`, typed in `{project}`, runs." if local else ""
    return f"## MLflow\n\n[The run of this pipeline]({link}), found by its key `{pipeline}`.{note}"


def _count(outcomes: Sequence[Outcome]) -> str:
    states = [outcome.state for outcome in outcomes]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def _headline(scores: dict[str, Any]) -> str:
    """Return the scores that tell most, in the 40 characters that fit on a card."""
    found: list[str] = []
    for name, value in scores.get("samples", {}).items():
        base, _, is_spread = parts(name)
        if _kind(base) in HEADLINE and not is_spread:
            label = re.split(r" \(|:", _label(base), maxsplit=1)[0]
            label = label.removeprefix("classifier ") if found else label
            found.append(f"{label} {_number(base, value)}")
    return ", ".join(found)


def _kind(name: str) -> str:
    """Return what a score is, whatever features it is measured with."""
    return name if name in LABELS else name.rpartition("_")[2]


def _label(name: str) -> str:
    """Return a score's name for people: `classifier_fid` is the classifier's FID."""
    kind = _kind(name)
    features = name.removesuffix(kind).removesuffix("fid_").strip("_").replace("_", " ")
    return f"{features} {LABELS.get(kind, kind)}".strip()


def _number(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{100 * value:.1f} %" if _kind(name) == "accuracy" else f"{value:.4g}"


def _metrics(project: Path, stage: str) -> dict[str, Any]:
    path = project / "out" / stage / "metrics.json"
    return atomic.read_json(path) if path.is_file() else {}
