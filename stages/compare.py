"""Compare runs in the terminal: what was changed, and what came of it.

The workspace, DVC's experiments and the pipelines that MLflow remembers, each with the keys of
`params.yaml` that differ from the committed ones. Pipelines with the same parameters and scores are
one line.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from textwrap import wrap
from typing import Any

from mar.evaluation.score_names import parts
from stages import changes, headline, lineage, mlflow_store, params
from stages.pipeline_run import OUT, TAG, numbers_of


WIDTH = 100
NAME_WIDTH, LEAST_ROOM = 19, 24  # of an experiment, and of its changed keys
WORKSPACE = "workspace"
COLUMNS = {  # the numbers shown, by their names in a pipeline's run
    "fid": "FID",
    "inception_score": "IS",
    "precision": "prec.",
    "recall": "recall",
    "fd_dinov2": "FD-DINO",
    "precision_dinov2": "prec.",
    "recall_dinov2": "recall",
    "classifier_fid": "FID*",
    "classifier_is": "IS*",
    "classifier_precision": "prec.*",
    "classifier_recall": "recall*",
    "classifier_accuracy": "accuracy",
    "psnr": "PSNR",
}
COUNT_NOTE = "FID/500: of so few images, and only comparable with as many"
FOOTNOTE = "* by the classifier of stage reference, not by Inception"


@dataclass(frozen=True)
class Row:
    """One run of the pipeline.

    Attributes:
        name: Of the experiment, or when it ran.
        values: Its params, as text under dotted names.
        numbers: Its headline numbers.
    """

    name: str
    values: dict[str, str]
    numbers: dict[str, float]


def workspace() -> Row:
    """Return what lies in `out/`; scores of a stage that has yet to run again are left out."""
    stages = lineage.declarations()
    lock = lineage.locked()
    numbers: dict[str, float] = {}
    for name in stages:
        if lineage.is_current(name, stages, lock):
            numbers |= headline.select(name, numbers_of(OUT / name))
    return Row(WORKSPACE, _as_text(changes.current()), numbers)


def experiments(everywhere: bool = False) -> list[Row]:
    """Return DVC's experiments of the present commit, or of all; none where DVC has none."""
    command = [sys.executable, "-m", "dvc", "exp", "show", "--json", *["--all"] * everywhere]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode != 0:
        return []
    return read_experiments(json.loads(found.stdout or "[]"))


def read_experiments(shown: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return the experiments that `dvc exp show --json` tells of, but those that failed."""
    rows = []
    for commit in shown:
        for found in commit.get("experiments") or []:
            for state in (found.get("revs") or [])[:1]:
                if data := state.get("data"):
                    rows.append(_experiment(found.get("name") or state["rev"][:7], data))
    return rows


def pipelines(most: int = 100) -> list[Row]:
    """Return the last pipelines that MLflow remembers.

    Raises:
        ValueError: it cannot be asked, with the reason.
    """
    if not mlflow_store.exists():
        return []
    try:
        store = mlflow_store.connect()
        found = store.client.search_runs(
            [store.experiment], f"tags.`{TAG}` LIKE '%'", max_results=most
        )
    except Exception as error:
        raise ValueError(mlflow_store.reason(error)) from None
    return [
        Row(
            run.data.tags.get("dvc.experiment") or _when(run.info.start_time),
            dict(run.data.params),
            dict(run.data.metrics),
        )
        for run in found
    ]


def distinct(rows: Sequence[Row]) -> list[Row]:
    """Drop the rows without a score, and those that an earlier one says already."""
    kept: dict[str, Row] = {}
    names: set[str] = set()
    for row in rows:
        scores = {key: f"{row.numbers[key]:.6g}" for key in _columns([row])}
        same = json.dumps([row.values, scores], sort_keys=True)
        if row.name == WORKSPACE or (scores and same not in kept and row.name not in names):
            kept[same] = row
            names.add(row.name)
    return list(kept.values())


def table(rows: Sequence[Row], committed: Mapping[str, str] | None) -> str:
    """Return the rows as text of at most `WIDTH` columns."""
    keys = _columns(rows)
    while sum(map(len, map(_head, keys))) > WIDTH - NAME_WIDTH - 2 - LEAST_ROOM:
        others = [key for key in keys if "fid" not in key]
        keys.remove((others or keys)[-1])  # of several extractors, or numbers of images
    heads = [_head(key) for key in keys]
    room = WIDTH - NAME_WIDTH - 2 - sum(map(len, heads))
    lines = [f"{'experiment':{NAME_WIDTH}} {'changed keys':{room}} {''.join(heads)}".rstrip()]
    for row in rows:
        changed = {} if committed is None else changes.differing(committed, row.values)
        texts = [changes.assignment(key, value) for key, value in changed.items()] or ["-"]
        first, *more = [line for text in texts for line in wrap(text, room)]
        cells = [
            f"{f'{row.numbers[key]:#.4g}' if key in row.numbers else '-':>{len(head)}}"
            for key, head in zip(keys, heads, strict=True)
        ]
        lines.append(f"{_cut(row.name):{NAME_WIDTH}} {first:{room}} {''.join(cells)}".rstrip())
        lines += [f"{'':{NAME_WIDTH}} {text}" for text in more]
    if any("*" in head for head in heads):
        lines += ["", FOOTNOTE]
    if any("/" in head for head in heads):
        lines += ["", COUNT_NOTE]
    if any(row.name == WORKSPACE and not row.numbers for row in rows):
        lines += ["", f"{WORKSPACE}: out/ is not of these parameters and this code; run: dvc repro"]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparison."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.compare",
        description="Compare the workspace, DVC's experiments and the pipelines MLflow remembers.",
    )
    parser.add_argument("--all", action="store_true", help="experiments of all commits, not HEAD's")
    parser.add_argument(
        "--most", type=int, default=20, metavar="N", help="rows at most, the latest (default 20)"
    )
    chosen = parser.parse_args(arguments)
    if not params.FILE.is_file():
        sys.stderr.write(f"{params.FILE} is missing in {Path.cwd()}\n")
        return 1
    rows = [workspace(), *experiments(chosen.all)]
    try:
        rows += pipelines()
    except ValueError as error:
        sys.stderr.write(f"without MLflow's runs: {error}\n")
    before = changes.committed()
    sys.stdout.write(
        table(distinct(rows)[: chosen.most], None if before is None else _as_text(before)) + "\n"
    )
    if len(rows) == 1:
        sys.stdout.write(
            "\nno experiments yet; one is made by: dvc exp run -S sample.guidance_scale=2\n"
        )
    return 0


def _experiment(name: str, data: Mapping[str, Any]) -> Row:
    values = (data.get("params") or {}).get(str(params.FILE), {}).get("data") or {}
    numbers: dict[str, float] = {}
    for path, found in (data.get("metrics") or {}).items():
        stage = Path(path).parent.name
        flat = changes.flatten(found.get("data") or {})
        named = {key.replace(".", "/"): value for key, value in flat.items()}
        numbers |= headline.select(stage, named)
    return Row(name, _as_text(changes.flatten(values)), numbers)


def _as_text(values: Mapping[str, Any]) -> dict[str, str]:
    """Return values as MLflow keeps them, so that those of all sources are comparable."""
    return {key: str(value) for key, value in values.items()}


def _columns(rows: Sequence[Row]) -> list[str]:
    """Return the numbers to show; a distance of few images is one for each number of images."""
    names = sorted({name for row in rows for name in row.numbers}, key=_order)
    return [name for name in names if _order(name)[0] < len(COLUMNS)]


def _order(name: str) -> tuple[int, int]:
    base, num_images, is_spread = parts(name)
    known = base in COLUMNS and not is_spread
    return (list(COLUMNS).index(base) if known else len(COLUMNS), num_images or 0)


def _head(key: str) -> str:
    base, num_images, _ = parts(key)
    text = f"{COLUMNS[base]}{'' if num_images is None else f'/{num_images}'}"
    return f"{text:>{max(7, len(text) + 1)}}"


def _cut(text: str) -> str:
    return text if len(text) <= NAME_WIDTH else f"{text[: NAME_WIDTH - 3]}..."


def _when(milliseconds: int) -> str:
    return f"{datetime.fromtimestamp(milliseconds / 1000):%Y-%m-%d %H:%M:%S}"


if __name__ == "__main__":
    raise SystemExit(main())
