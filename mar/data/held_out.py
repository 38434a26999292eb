"""Which images of a data set are held out from training.

Shapes: N images of a data set.
"""

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from mar.seeds import make_rng


def hold_out(labels: Int64[Tensor, " N"], fraction: float, seed: int) -> Bool[Tensor, " N"]:
    """Choose a share of each class at random (True = held out).

    A class of two images or more keeps at least one on either side; a class of one is trained on.
    """
    held_out = torch.zeros_like(labels, dtype=torch.bool)
    counts = [int(num) for num in labels.bincount()]
    by_class = torch.split(labels.argsort(stable=True), counts)
    for label, members in enumerate(by_class):
        num = min(max(round(fraction * len(members)), 1), len(members) - 1)
        order = torch.randperm(len(members), generator=make_rng("held out", seed, label))
        held_out[members[order[: max(num, 0)]]] = True
    return held_out
