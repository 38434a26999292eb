"""Compose the report of an evaluation from its numbers and pictures, and write it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mar.evaluation.copies import SHARE, Copies
from mar.evaluation.reference import ReferenceInfo
from mar.files import atomic
from stages import prompt_scores, report, scene_scores
from stages.report import Picture, Report
from stages.stage import Stage
from stages.tables import Table


TITLE = "Evaluation of {count:,} generated images"
COPIES = (
    "What counts as a copy is set by real images, in the extractor's feature space: a "
    "near-duplicate is nearer to another generated image than all but {share:.0%} of as many real "
    "ones are to each other, a copy of a real image nearer to one than all but {share:.0%} of "
    "{basis} are. So about {share:.0%} is what fresh real images would have, and much more is a "
    "finding."
)
NOTES = {
    "nearest": ("Copies", "The generated images that are nearest to a real one, each above it, "
                "and the closest pairs of generated images."),
    "farthest": ("Farthest from all real images", "The generated images whose features are "
                 "farthest from those of the nearest real image, the farthest first."),
    "confusion": ("Classes", "Rows: the class that was to be generated; columns: what the "
                  "classifier sees."),
}  # fmt: skip


def compose(
    stage: Stage,
    values: Mapping[str, Any],
    info: ReferenceInfo,
    sections: Mapping[str, Mapping[str, Any]],
    found: Copies | None,
    *,
    warnings: Sequence[str],
    grid: Path,
    curves: Path,
) -> Report:
    """Return the report.

    Args:
        stage: The stage, whose folder holds the pictures.
        values: What its `metrics.json` holds.
        info: What the samples were compared with.
        sections: The sections of `params.yaml` that the numbers depend on most.
        found: The copies among the samples.
        warnings: What a reader should know of the scores.
        grid: A picture of the samples.
        curves: Of the generator's training.
    """
    real = "an unknown number of" if info.num_reference is None else f"{info.num_reference:,}"
    summary = (
        f"Compared with {real} real images of {info.image_size} px ({info.source}) by the features "
        f"of the extractor {info.extractor}; beside them, {info.num_held_out:,} real images that "
        "were held out. Scores can be compared if extractor, reference and number of images agree."
    )
    described = info.model_dump(exclude={"held_out"}) | {"num_samples": values["num_samples"]}
    tables = [Table("Measured with", report.facts(described), "The id tells references apart.")]
    if found:
        tables.append(_copies(found, values["copies"], info))
    if "scenes" in values:
        tables.insert(0, scene_scores.table(values["scenes"]))
    tables = [*prompt_scores.tables(values), *tables]
    for name, section in sections.items():
        tables.append(Table(f"Section {name}", report.facts(section)))
    return Report(
        title=TITLE.format(count=values["num_samples"]),
        summary=summary,
        warnings=warnings,
        rows=report.rows(values["samples"], values["held_out"]),
        tables=tables,
        pictures=_pictures(stage.out, grid, curves),
        folder=stage.out,
    )


def write(stage: Stage, page: Report) -> None:
    """Write the report; a copy for people also says which commit and run it is of."""
    atomic.write_text(stage.out / "report.html", page.html())
    atomic.write_text(stage.out / "report.md", page.markdown())
    stage.preview("report", page=page)


def _copies(found: Copies, shares: Mapping[str, Any], info: ReferenceInfo) -> Table:
    basis = "the held-out ones" if info.num_held_out else "the real ones to each other"
    rows = [
        ("near-duplicates", f"{shares['near_duplicates']:.2%} of the generated images"),
        ("copies of real images", f"{shares['training_copies']:.2%} of the generated images"),
        ("sought among", f"{shares['num_compared']:,} real images"),
        ("distance of a near-duplicate", f"{found.near_duplicate:.4g}"),
        ("distance of a copy", f"{found.training_copy:.4g}"),
    ]
    return Table("Copies", rows, COPIES.format(share=SHARE, basis=basis))


def _pictures(out: Path, grid: Path, curves: Path) -> list[Picture]:
    pictures = [Picture("Generated images", grid, "The first ones, not chosen.")]
    pictures += [Picture(title, out / "pictures" / f"{name}.png", note)
                 for name, (title, note) in NOTES.items()]  # fmt: skip
    if curves.is_file() and len(pd.read_csv(curves)):
        path = out / "pictures" / "training.png"
        with atomic.replacing(path) as partial:
            partial.write_bytes(report.curve(curves, "loss", "loss"))
        pictures.append(Picture("Training of the generator", path, "The loss of its batches."))
    return [picture for picture in pictures if picture.path.is_file()]
