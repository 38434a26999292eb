"""The claims of the paper's Table 1, and whether our measurements confirm them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from pipelines.measurement import Row


VARIANTS = ("raster-causal", "random-causal", "random-bidirectional", "mar")
HEADS = ("cross-entropy", "diffusion")
GUIDED = (False, True)


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and pairs of rows that test it: the first must have the lower FID."""

    text: str
    pairs: tuple[tuple[str, str], ...]


CLAIMS = (
    Claim(
        "bidirectional beats causal",
        tuple(
            (f"table1-random-bidirectional-{head}", f"table1-random-causal-{head}")
            for head in HEADS
        ),
    ),
    Claim(
        "random beats raster",
        tuple((f"table1-random-causal-{head}", f"table1-raster-causal-{head}") for head in HEADS),
    ),
    Claim(
        "diffusion beats cross-entropy",
        tuple((f"table1-{of}-diffusion", f"table1-{of}-cross-entropy") for of in VARIANTS),
    ),
    Claim(
        "diffusion beats cross-entropy on the same tokenizer",
        (("table2-vq16", "table1-mar-cross-entropy"),),
    ),
    Claim(
        "L2 fails: it is worse than every row of Table 1",
        tuple((f"table1-{of}-{head}", "l2") for of in VARIANTS for head in HEADS),
    ),
)


@dataclass(frozen=True)
class Comparison:
    """Two rows, compared by their FID.

    Attributes:
        better: The row with the lower FID in the paper.
        worse: The other row.
        holds: Whether `better` has the lower FID in our measurements too: without guidance (key
            False) and with guidance (key True), where both rows were measured. None: undecided, as
            the ranges of their seeds overlap.
    """

    better: Row
    worse: Row
    holds: dict[bool, bool | None]


@dataclass(frozen=True)
class Verdict:
    """A claim, and the comparisons for which both rows were measured."""

    claim: Claim
    comparisons: tuple[Comparison, ...]

    @property
    def text(self) -> str:
        """Return "holds", "does not hold", "undecided", or how often each occurs."""
        outcomes = [holds for pair in self.comparisons for holds in pair.holds.values()]
        if not outcomes:
            return "not measured"
        if len(set(outcomes)) == 1:
            return NAMES[outcomes[0]]
        counts = {name: outcomes.count(key) for key, name in NAMES.items()}
        return "mixed: " + ", ".join(f"{name} {count}" for name, count in counts.items() if count)


NAMES = {True: "holds", False: "does not hold", None: "undecided"}


def check(rows: Sequence[Row]) -> list[Verdict]:
    """Compare the rows that were measured, with guidance and without."""
    by_name = {row.name: row for row in rows}
    return [Verdict(claim, tuple(_compare(claim, by_name))) for claim in CLAIMS]


def _compare(claim: Claim, rows: dict[str, Row]) -> Iterator[Comparison]:
    for pair in claim.pairs:
        if not all(name in rows for name in pair):
            continue
        better, worse = (rows[name] for name in pair)
        fids = {
            guided: [row.over("fid", guided=guided) for row in (better, worse)] for guided in GUIDED
        }
        holds = {
            guided: one.beats(other)
            for guided, (one, other) in fids.items()
            if one.values and other.values
        }
        if holds:
            yield Comparison(better, worse, holds)


def rank_correlation(rows: Sequence[Row], *, guided: bool) -> float | None:
    """Return Spearman's correlation of our FIDs with the paper's; None with fewer than 3 rows."""
    pairs = [
        (row.published[guided], fid.mean)
        for row in rows
        if row.published and (fid := row.over("fid", guided=guided)).values
    ]
    if len(pairs) < 3:
        return None
    return float(pd.DataFrame(pairs).corr(method="spearman").to_numpy()[0, 1])
