"""Say in a few lines what the last run of the pipeline made: `python -m stages.summary`."""

import sys
from pathlib import Path
from typing import Any

from mar.files import atomic


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
    lines = [
        f"{result['num_samples']} generated images against {result['num_reference']} real ones "
        f"(extractor {result['extractor']}, reference {result['reference']}):",
        "",
        f"  {'':24}{'generated':>12}{'real, held out':>18}",
    ]
    for name, value in result["samples"].items():
        real = result["held_out"].get(name)
        lines.append(f"  {name:24}{value:12.4f}{'' if real is None else f'{real:18.4f}'}")
    lines += [
        "",
        f"  samples   {out / 'sample' / 'grid.png'}",
        "  runs      .venv/bin/mlflow ui   (then open the address it prints)",
        "  curves    .venv/bin/dvc plots show",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        sys.stdout.write(f"\n{summarise()}\n")
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(1) from None
