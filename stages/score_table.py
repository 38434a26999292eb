"""The table of scores that programs print, from what `RealImages.report` returns."""

from collections.abc import Mapping
from typing import Any

from mar.evaluation.score_names import find, parts
from stages.tables import Table


def score_table(report: Mapping[str, Any]) -> list[str]:
    """Return what scores were measured with, and each beside that of real images, in lines."""
    real = (
        "real ones" if report["num_reference"] is None else f"{report['num_reference']} real ones"
    )
    lines = [
        f"{report['num_samples']} generated images against {real} "
        f"(extractor {report['extractor']}, reference {report['reference']}):",
        "",
        f"  {'':24}{'generated':>12}{'':11}{'real, held out':>14}",
    ]
    for name, value in report["samples"].items():
        base, _, is_spread = parts(name)
        if is_spread:
            continue
        spread = find(report["samples"], base, spread=True)
        held_out = find(report["held_out"], base)
        cells = [
            f"{value:12.4f}",
            f"{'' if spread is None else f' +- {spread:.4f}':11}",
            "" if held_out is None else f"{held_out:14.4f}",
        ]
        lines.append(f"  {name:24}{''.join(cells)}".rstrip())
    return lines


def text_table(table: Table) -> list[str]:
    """Return a table of the report in lines, without what is said below it."""
    width = max((len(name) for name, _ in table.rows), default=0)
    return [f"{table.title}:", "", *(f"  {name:{width}}  {value}" for name, value in table.rows)]
