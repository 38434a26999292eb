"""Compare a training step with that of another implementation: FLOPs, operations, seconds.

    python -m benchmarks.train_step --reference ADAPTER.py --json step.json

Without an adapter (`benchmarks.training_step` says what it is), our step is measured alone. The
defaults are the sizes of the table in `benchmarks/README.md`.
"""

import argparse
import statistics
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch._inductor import metrics
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.training_step import Sizes, Step, all_steps, alternate, print_result, ratios


WARM_UP = 2  # steps before anything is measured


class _Counts(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()


class Operations(_Counts):
    """Counts the operations that a device executes: all that are dispatched, except for views."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Count an operation, and execute it."""
        name = func._schema.name
        if not func.is_view and func.namespace == "aten" and name != "aten::_unsafe_view":
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


class Waits(_Counts):
    """Counts operations for whose result, or its size, the program must wait."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Count an operation, and execute it."""
        tags = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
        waits = bool(tags & set(func.tags))
        if func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put_):
            waits = any(index is not None and index.dtype == torch.bool for index in args[1])
        self.counts[str(func)] += waits
        return func(*args, **(kwargs or {}))


def parse() -> argparse.Namespace:
    """Read the sizes, and what to compare with."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for field in fields(Sizes):
        kind = {"dropout": float, "mask_ratio": float, "device": str}.get(field.name, int)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    parser.add_argument("--reference", type=Path, help="adapter of another implementation")
    parser.add_argument(
        "--compiled", action="store_true", help="measure our compiled step too, count its kernels"
    )
    parser.add_argument("--rounds", type=int, default=9, help="timed steps of each")
    parser.add_argument("--json", type=Path, help="where the numbers are written")
    return parser.parse_args()


def count(step: Step) -> dict[str, float]:
    """Return the operations and FLOPs of a step."""
    with Operations() as operations:
        step()
    with FlopCounterMode(display=False) as flops:
        step()
    return {
        "operations": operations.counts.total(),
        "gflop": flops.get_total_flops() / 1e9,  # pyright: ignore[reportUnknownMemberType]
    }


def measure(sizes: Sizes, reference: Path | None, *, compiled: bool, rounds: int) -> dict[str, Any]:
    """Return the numbers of each step, and how they compare."""
    steps = all_steps(sizes, reference, compiled=compiled)
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    times = alternate(steps, rounds, torch.device(sizes.device))
    result: dict[str, Any] = {}
    for name, step in steps.items():
        result[name] = {clock: statistics.median(seconds) for clock, seconds in times[name].items()}
        if "compiled" in name:  # what it executes is not dispatched
            result[name]["kernels"] = metrics.generated_kernel_count
        else:
            result[name] |= count(step)
        result[name]["times as long as ours"] = ratios(times[name], times["ours"])
    return result


def main() -> None:
    """Measure, print and write."""
    arguments = parse()
    sizes = Sizes(**{field.name: getattr(arguments, field.name) for field in fields(Sizes)})
    result = measure(
        sizes, arguments.reference, compiled=arguments.compiled, rounds=arguments.rounds
    )
    print_result(
        {"sizes": vars(sizes), "threads": torch.get_num_threads(), **result}, arguments.json
    )


if __name__ == "__main__":
    main()
