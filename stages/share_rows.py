"""Shares of images as text for the report, with their standard errors."""

from collections.abc import Iterator, Mapping
from typing import Any

from stages.tables import PLUS_MINUS


def percent(scores: Mapping[str, Any], name: str) -> str:
    """Return a share in percent, with its standard error `name_std` if there is one."""
    spread = scores.get(f"{name}_std")
    return f"{scores[name]:.1%}" + ("" if spread is None else f" {PLUS_MINUS} {spread:.1%}")


def task_rows(scores: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the name of each task and its share."""
    spreads = scores.get("tasks_std", {})
    for name, share in scores["tasks"].items():
        found = {"share": share} | ({"share_std": spreads[name]} if name in spreads else {})
        yield name.replace("_", " "), percent(found, "share")
