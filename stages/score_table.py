"""The table of scores that programs print, from what `RealImages.report` returns."""

from collections.abc import Mapping
from typing import Any


def score_table(report: Mapping[str, Any]) -> list[str]:
    """Return what scores were measured with, and each beside that of real images, in lines."""
    real = (
        "real ones" if report["num_reference"] is None else f"{report['num_reference']} real ones"
    )
    lines = [
        f"{report['num_samples']} generated images against {real} "
        f"(extractor {report['extractor']}, reference {report['reference']}):",
        "",
        f"  {'':24}{'generated':>12}{'real, held out':>18}",
    ]
    for name, value in report["samples"].items():
        held_out = report["held_out"].get(name)
        beside = "" if held_out is None else f"{held_out:18.4f}"
        lines.append(f"  {name:24}{value:12.4f}{beside}")
    return lines
