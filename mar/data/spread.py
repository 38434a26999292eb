"""Some of many, at equal distances.

Shapes: K indices.
"""

import torch
from jaxtyping import Int
from torch import Tensor


def spread(count: int, wanted: int) -> Int[Tensor, " K"]:
    """Return `wanted` of the indices below `count` at equal distances, or all of them if fewer."""
    wanted = min(wanted, count)
    return torch.arange(wanted) * count // max(wanted, 1)
