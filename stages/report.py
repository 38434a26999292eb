"""The report of an evaluation: one page of HTML that holds its pictures, and Markdown.

What DVC keeps is a function of what the stage `evaluate` declares. Commit, changed parameters and
addresses of runs are added to a copy for MLflow and `work/reports` (`stages.previews.report`).
"""

import base64
import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mar.evaluation.image_grid import one_line
from mar.evaluation.score_names import find, parts
from stages.tables import PLUS_MINUS, Table


TEMPLATES = Path(__file__).parent
# What a score is, whatever its features: how people call it, and what is better.
LABELS = {
    "accuracy": ("accuracy", "more is better"),
    "precision": ("precision", "more is better"),
    "recall": ("recall", "more is better"),
    "inception_score": ("Inception Score", "more is better"),
    "is": ("Inception Score", "more is better"),
    "sfid": ("sFID", "less is better"),
    "fid": ("FID", "less is better"),
    "fd": ("Frechet distance", "less is better"),
    "kid": ("KID", "less is better"),
    "kd": ("kernel distance", "less is better"),
    "mmd": ("MMD", "less is better"),
}
KIND = re.compile(rf"(?:(\w+)_)?({'|'.join(LABELS)})(?:_(?!inf)(\w+?))?(_inf)?")
INFINITE = ", extrapolated to infinitely many images"


@dataclass(frozen=True)
class Row:
    """A score of generated and of real images, as text."""

    name: str
    label: str
    samples: str
    held_out: str
    better: str


@dataclass(frozen=True)
class Picture:
    """A PNG file with a title and what it shows."""

    title: str
    path: Path
    note: str

    @property
    def data(self) -> str:
        """The file as base64."""
        return base64.b64encode(self.path.read_bytes()).decode("ascii")


@dataclass(frozen=True)
class Report:
    """All that a report says.

    Attributes:
        title: Its heading.
        summary: What was measured with what, in a sentence.
        warnings: What a reader should know before the numbers.
        rows: The scores.
        tables: Facts: what they were measured with, copies, where it comes from.
        pictures: In their order; those that are missing are left out.
        folder: Where the Markdown lies, from which it refers to the pictures.
    """

    title: str
    summary: str
    warnings: Sequence[str]
    rows: Sequence[Row]
    tables: Sequence[Table]
    pictures: Sequence[Picture]
    folder: Path

    def html(self) -> str:
        """Return the page, which needs no other file and asks nothing of the network."""
        return self._render("report.html.jinja", self.pictures)

    def markdown(self) -> str:
        """Return the same as Markdown, with the pictures beside it."""
        pictures = [
            {
                "title": each.title,
                "note": each.note,
                "path": os.path.relpath(each.path, self.folder),
            }
            for each in self.pictures
        ]
        return self._render("report.md.jinja", pictures)

    def with_tables(self, tables: Sequence[Table]) -> "Report":
        """Return the same report with more facts."""
        return replace(self, tables=[*self.tables, *tables])

    def _render(self, template: str, pictures: Sequence[object]) -> str:
        has_spread = any(PLUS_MINUS in row.samples for row in self.rows)
        note = f"Behind {PLUS_MINUS} stands one standard deviation." if has_spread else ""
        return (
            _environment()
            .get_template(template)
            .render(
                title=self.title,
                summary=self.summary,
                warnings=self.warnings,
                rows=self.rows,
                tables=self.tables,
                pictures=pictures,
                spread_note=note,
            )
        )


def rows(samples: Mapping[str, float], held_out: Mapping[str, float]) -> list[Row]:
    """Return scores, each beside that of real images and with its spread, as text."""
    found: list[Row] = []
    for name in samples:
        base, _, is_spread = parts(name)
        if is_spread:
            continue
        match = KIND.fullmatch(base)
        kind = match[2] if match else None
        label, better = LABELS[kind] if kind else (base, "")
        if match:
            features = " ".join(filter(None, (match[1], match[3])))
            label = f"{features} {label}{INFINITE if match[4] else ''}".strip()
        ours, real = (_number(kind, scores, base) for scores in (samples, held_out))
        found.append(Row(name, label, ours, real, better))
    return found


def curve(path: Path, column: str, label: str) -> bytes:
    """Return a curve of a CSV file over its steps, as PNG."""
    table = pd.read_csv(path)
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(table["step"], table[column], linewidth=1.0, color="#2a5bd7")
    axes.set_xlabel("optimiser steps")
    axes.set_ylabel(label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=140)
    return content.getvalue()


def facts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return keys, nested ones with dots, and values as text of one line each."""
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found += [(f"{key}.{inner}", text) for inner, text in facts(value)]
        else:
            found.append((key, one_line("none" if value is None else str(value))))
    return found


def _number(kind: str | None, scores: Mapping[str, float], base: str) -> str:
    value, spread = find(scores, base), find(scores, base, spread=True)
    if value is None:
        return ""
    if kind == "accuracy":
        return f"{value:.1%}" + (f" {PLUS_MINUS} {spread:.1%}" if spread else "")
    if not spread:
        return f"{value:.4g}"
    decimals = max(1 - math.floor(math.log10(spread)), 0)  # two digits of the spread
    return f"{value:.{decimals}f} {PLUS_MINUS} {spread:.{decimals}f}"


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name is not None and "html" in name,
        keep_trailing_newline=True,
    )
