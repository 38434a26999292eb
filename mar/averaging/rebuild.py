"""Rebuild an average of any width or decay after the training (EDM2, section 3.2)."""

from pathlib import Path

import torch
from torch import nn

from mar.averaging import profiles
from mar.averaging.choice import Rebuilt
from mar.averaging.profiles import Fit, Power
from mar.averaging.snapshots import read_index


LARGE_ERROR = 0.1  # ours


@torch.no_grad()
def rebuild(model: nn.Module, folder: Path, choice: Rebuilt) -> Fit:
    """Give a model the sum of snapshots that is closest to an average, and return that sum.

    One snapshot at a time is in memory; sums are taken in float64.

    Args:
        model: Of the training whose snapshots they are.
        folder: Holds the snapshots.
        choice: The average.

    Raises:
        ValueError: there are no snapshots, a file is missing or damaged, or of another model.
    """
    snapshots = read_index(folder)
    if not snapshots:
        raise ValueError(
            f"sample.weights: must be 'ema' or 'raw', as the training kept no averages "
            f"(training.averages is null), got {choice.model_dump()}"
        )
    last = max(snapshot.step for snapshot in snapshots)
    known = [Power.of_width(snapshot.width, snapshot.step) for snapshot in snapshots]
    found = profiles.fit(known, choice.profile(last))
    parameters = dict(model.named_parameters())
    sums = {
        name: torch.zeros_like(value, dtype=torch.float64) for name, value in parameters.items()
    }
    for snapshot, coefficient in zip(snapshots, found.coefficients, strict=True):
        tensors = snapshot.read(folder)
        shapes = {name: value.shape for name, value in tensors.items()}
        if shapes != {name: value.shape for name, value in parameters.items()}:
            raise ValueError(f"{folder / snapshot.file} holds the weights of another model")
        for name, total in sums.items():
            total.add_(tensors[name].to(total), alpha=coefficient)
    for name, parameter in parameters.items():
        parameter.copy_(sums[name])
    return found


def fit_warning(found: Fit, choice: Rebuilt) -> str | None:
    """Return a warning if the snapshots hold no average near the wanted one, else None."""
    if found.error < LARGE_ERROR:
        return None
    return (
        f"sample.weights: no sum of the snapshots is close to {choice.model_dump()}: the profile "
        f"of the closest is off by {100 * found.error:.0f} % of its norm. More snapshots "
        "(training.averages.snapshots) give narrower averages"
    )
