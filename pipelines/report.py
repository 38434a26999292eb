"""The report of an ablation: tables of rows and claims (Markdown), a plot, and the numbers."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from mar.files import atomic
from pipelines.claims import GUIDED, NAMES, Comparison, Verdict, check, rank_correlation
from pipelines.measurement import Measurement, Over, Row


COLOURS = {"cross-entropy": "tab:orange", "diffusion": "tab:blue", "": "tab:grey"}
PLUS_MINUS = "\u00b1"
PICTURE = re.compile(r"!\[[^]]*\]\([^)]*\)")  # in Markdown
TITLES = {False: "without guidance", True: "with guidance"}


def write(folder: Path, name: str, rows: Sequence[Row], failures: Iterable[str]) -> str:
    """Write `ablation-NAME.md`, `.png`, `.csv` and `.json`, and return the Markdown."""
    stem = f"ablation-{name}"
    verdicts = check(rows)
    text = markdown(rows, verdicts, picture=picture(name), failures=failures)
    _draw(folder / picture(name), rows)
    atomic.write_text(folder / f"{stem}.csv", _table(rows))
    atomic.write_json(folder / f"{stem}.json", _summary(rows, verdicts))
    atomic.write_text(folder / f"{stem}.md", text)
    return text


def picture(name: str) -> str:
    """Return the file name of the plot of a report."""
    return f"ablation-{name}.png"


def markdown(
    rows: Sequence[Row],
    verdicts: Sequence[Verdict],
    *,
    picture: str,
    failures: Iterable[str],
) -> str:
    """Return the table of rows, the claims with their numbers, and the failures."""
    beside = " beside the paper's" if _any_published(rows) else ""
    seeds = sorted({m.seed for row in rows for m in row.measurements})
    real = rows[0].measurements[0]
    lines = [
        f"{_of_seeds(seeds)} FID is `{real.distance}`; that of real images which were held out "
        f"is {real.real_fid:.2f}{_of_real(real)}.",
        "",
        "| row | FID without guidance | FID with | recognised without | recognised with "
        "| paper's FID without / with | tokenizer's PSNR, dB | parameters | training, s "
        "| sampling, ms an image |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(_line(row) for row in rows),
        "",
        f"![Each row's FID{beside}]({picture})",
    ]
    ranks = {guided: rank_correlation(rows, guided=guided) for guided in GUIDED}
    said = [f"{rank:.2f} {TITLES[guided]}" for guided, rank in ranks.items() if rank is not None]
    if said:
        lines += ["", f"Rank correlation with the paper's FIDs: {', '.join(said)}."]
    measured = [verdict for verdict in verdicts if verdict.comparisons]
    if measured:
        lines += [
            "",
            "| the paper has lower | than | ours, without guidance | ours, with "
            "| paper, without | paper, with |",
            "|---|---|---|---|---|---|",
            *(line for verdict in measured for line in _claim_lines(verdict)),
            "",
            "Undecided: the ranges of the seeds overlap.",
        ]
    failed = [f"- {failure}" for failure in failures]
    return "\n".join([*lines, *(["", "Failed:", "", *failed] if failed else [])]) + "\n"


def _line(row: Row) -> str:
    cells = [row.name]
    cells += [_number(row.over("fid", guided=guided), "{:.2f}") for guided in GUIDED]
    cells += [_percent(row.over("classifier_accuracy", guided=guided)) for guided in GUIDED]
    cells.append("" if row.published is None else "{:.2f} / {:.2f}".format(*row.published))
    cells.append(_number(row.over("psnr"), "{:.1f}", spread=False))
    cells.append(f"{row.over('parameters').mean:,.0f}")
    cells.append(_number(row.over("training_seconds"), "{:.0f}", spread=False))
    cells.append(_number(row.over("sampling_ms", guided=False), "{:.1f}", spread=False))
    return f"| {' | '.join(cells)} |"


def _claim_lines(verdict: Verdict) -> Iterable[str]:
    yield f"| **{verdict.claim.text}** | | **{verdict.text}** | | | |"
    for pair in verdict.comparisons:
        cells = [pair.better.name, pair.worse.name]
        cells += [_ours(pair, guided=guided) for guided in GUIDED]
        cells += [_paper(pair, guided=guided) for guided in GUIDED]
        yield f"| {' | '.join(cells)} |"


def _ours(pair: Comparison, *, guided: bool) -> str:
    if guided not in pair.holds:
        return ""
    fids = (row.over("fid", guided=guided).mean for row in (pair.better, pair.worse))
    return f"{' : '.join(f'{fid:.2f}' for fid in fids)} {NAMES[pair.holds[guided]]}"


def _paper(pair: Comparison, *, guided: bool) -> str:
    if pair.better.published is None or pair.worse.published is None:
        return ""
    return f"{pair.better.published[guided]:.2f} : {pair.worse.published[guided]:.2f}"


def _of_seeds(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"Seed {seeds[0]}."
    return f"Seeds {', '.join(map(str, seeds))}: mean {PLUS_MINUS} standard deviation."


def _of_real(real: Measurement) -> str:
    share = real.real_classifier_accuracy
    return "" if share is None else f", of which {100 * share:.1f} % are recognised"


def _percent(over: Over) -> str:
    text = _number(Over(tuple(100 * value for value in over.values)), "{:.1f}")
    return f"{text} %" if text else ""


def _number(over: Over, form: str, *, spread: bool = True) -> str:
    if not over.values:
        return ""
    text = form.format(over.mean)
    return (
        f"{text} {PLUS_MINUS} {form.format(over.spread)}"
        if spread and len(over.values) > 1
        else text
    )


def _table(rows: Sequence[Row]) -> str:
    """Return the measurements as CSV, one line each."""
    content = io.StringIO()
    names = [field.name for field in fields(Measurement)]
    writer = csv.DictWriter(content, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(measurement) for row in rows for measurement in row.measurements)
    return content.getvalue()


def _summary(rows: Sequence[Row], verdicts: Sequence[Verdict]) -> dict[str, object]:
    """Return the means and spreads of the rows, and the claims."""
    quantities = {
        f"{quantity}_{'guided' if guided else 'unguided'}": (quantity, guided)
        for quantity in ("fid", "classifier_accuracy")
        for guided in GUIDED
    }
    return {
        "rows": {
            row.name: {
                key: {"mean": over.mean, "spread": over.spread, "values": over.values}
                for key, (quantity, guided) in quantities.items()
                if (over := row.over(quantity, guided=guided)).values
            }
            | {"published": row.published, "parameters": row.over("parameters").mean}
            for row in rows
        },
        "claims": {
            verdict.claim.text: {
                "verdict": verdict.text,
                "comparisons": [
                    {
                        "better": pair.better.name,
                        "worse": pair.worse.name,
                        "holds": {TITLES[guided]: NAMES[it] for guided, it in pair.holds.items()},
                    }
                    for pair in verdict.comparisons
                ],
            }
            for verdict in verdicts
        },
    }


def _draw(path: Path, rows: Sequence[Row]) -> None:
    """Plot the FID of each row and seed; the rows are sorted by the paper's FID, worst first."""
    ordered = sorted(rows, key=lambda row: -row.published[0] if row.published else 0.0)
    figure = Figure(figsize=(11, 2.0 + 0.36 * len(ordered)), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Sequence[Axes] = figure.subplots(1, 2, sharex=True, sharey=True)
    for guided, panel in zip(GUIDED, panels, strict=True):
        _draw_panel(panel, ordered, guided=guided)
    panels[0].set_yticks(range(len(ordered)), [row.name for row in ordered])
    panels[0].invert_yaxis()
    panels[0].plot([], [], "o", color="tab:grey", label="ours: mean, and each seed")
    if _any_published(rows):
        panels[0].plot(
            [], [], "D", color="black", mfc="none", label="the paper's, on its own scale"
        )
    figure.legend(loc="outside lower center", ncols=2)
    with atomic.replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=110)


def _any_published(rows: Sequence[Row]) -> bool:
    return any(row.published for row in rows)


def _draw_panel(panel: Axes, rows: Sequence[Row], *, guided: bool) -> None:
    for place, row in enumerate(rows):
        colour = next(colour for head, colour in COLOURS.items() if head in row.name)
        values = row.over("fid", guided=guided).values
        if values:
            panel.plot(values, [place] * len(values), "|", color=colour, markersize=12)
            panel.plot([Over(values).mean], [place], "o", color=colour)
        if row.published:
            panel.plot([row.published[guided]], [place], "D", color="black", mfc="none")
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_title(TITLES[guided])
    panel.set_xlabel("FID")
    panel.grid(axis="x", alpha=0.3)
