"""Say in a few lines what the last run of the pipeline made: `python -m stages.summary`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mar.files import atomic
from stages import mlflow_store
from stages.score_table import score_table


OUT = Path("out")


def summarise(out: Path = OUT) -> str:
    """Return the scores, where the pictures are, and how to see the runs.

    Raises:
        ValueError: the pipeline has not finished.
    """
    path = out / "evaluate" / "metrics.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing; `dvc repro` has not finished")
    result: dict[str, Any] = atomic.read_json(path)
    lines = score_table(result)
    lines += [
        "",
        f"  samples   {out / 'sample' / 'grid.png'}",
        f"  runs      {runs()}",
        "            .venv/bin/python -m stages.compare",
        "  curves    .venv/bin/dvc plots show",
    ]
    return "\n".join(lines)


def runs() -> str:
    """Return how to see the runs: MLflow's own first page is one of traces, and empty."""
    try:
        store = mlflow_store.connect() if mlflow_store.exists() else None
    except Exception as error:
        return f"MLflow cannot be asked: {mlflow_store.reason(error)}"
    if store is None:
        return "none are kept yet"
    return store.page if store.is_server else f".venv/bin/mlflow ui, then {store.page}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the summary."""
    argparse.ArgumentParser(
        prog="python -m stages.summary", description=(__doc__ or "").partition(":")[0] + "."
    ).parse_args(arguments)
    try:
        sys.stdout.write(f"\n{summarise()}\n")
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
