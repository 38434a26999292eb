"""The dropouts of one pass through a block; on a CPU, a few operations make the masks of all.

A GPU has one kernel for each dropout, and one for attention with it. A CPU draws each element of a
mask from a generator that no other core can help with, at the price of ten multiplications. So
there, a number of 64 bits decides over four elements, and all masks of a block are made at once.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


LEVELS = 2**16  # a probability is a multiple of 1 / LEVELS: 0.1 is 0.100006


class Dropout:
    """Drop elements with probability p, which is 0 outside training, and scale the others up.

    Attributes:
        p: The probability.
        masks: The factors of each tensor to come, in this order; None if each is drawn when it is
            needed.
    """

    def __init__(self, p: float, masks: list[Tensor] | None = None) -> None:
        self.p = p
        self.masks = masks

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the next of the dropouts."""
        if self.masks is not None:
            return x * self.masks.pop(0)
        return functional.dropout(x, self.p) if self.p > 0 else x


def draw_masks(p: float, shapes: Sequence[tuple[int, ...]], like: Tensor) -> list[Tensor]:
    """Draw factors 0 and 1 / (1 - p) of each shape, of the device and type of another tensor.

    They come from torch's global generator.
    """
    sizes = [torch.Size(shape).numel() for shape in shapes]
    bits = torch.empty(sum(sizes) // 4 + 1, dtype=torch.int64, device=like.device)
    levels = bits.random_(-(2**63), None).view(torch.int16)  # uniform over all 2^16
    dropped = round(p * LEVELS)
    factors: Float[Tensor, " elements"] = (levels >= dropped - LEVELS // 2).to(like.dtype)
    factors *= LEVELS / (LEVELS - dropped)
    parts = torch.split(factors[: sum(sizes)], sizes)
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
