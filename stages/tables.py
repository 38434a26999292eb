"""Tables of facts, as reports and programs show them: light, as programs load it at their start."""

from collections.abc import Sequence
from dataclasses import dataclass


PLUS_MINUS = "\N{PLUS-MINUS SIGN}"


@dataclass(frozen=True)
class Table:
    """Facts under a title."""

    title: str
    rows: Sequence[tuple[str, str]]
    note: str = ""
