"""The dropouts of one pass through a block; on a CPU, a few operations make the masks of all.

A GPU has one kernel for each dropout, and one for attention with it. A CPU draws each element of a
mask from a generator that no other core can help with, at the price of ten multiplications. So
there, a number of 64 bits decides over four elements, and all masks of a block are made at once.

Shapes: H heads of all samples, Q queries, L keys, d width of a head.
"""
# torch.autograd.Function and its context have no types:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedFunctionDecorator=false

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
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

    def add(self, rest: Tensor, x: Tensor) -> Tensor:
        """Return rest + dropout(x)."""
        if self.masks is not None:
            return cast(Tensor, _AddMasked.apply(rest, x, self.masks.pop(0)))
        return rest + self(x)


def draw_masks(p: float, shapes: Sequence[tuple[int, ...]], like: Tensor) -> list[Tensor]:
    """Draw factors 0 and 1 / (1 - p) of each shape, of the device and type of another tensor.

    They come from torch's global generator.
    """
    sizes = [torch.Size(shape).numel() for shape in shapes]
    bits = torch.empty(sum(sizes) // 4 + 1, dtype=torch.int64, device=like.device)
    levels = bits.random_(-(2**63), None).view(torch.int16)  # uniform over all 2^16
    dropped = round(p * LEVELS)
    kept = levels >= dropped - LEVELS // 2
    factors = (kept * (LEVELS / (LEVELS - dropped))).to(like.dtype)
    parts = torch.split(factors[: sum(sizes)], sizes)
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def masked_attention(
    queries: Float[Tensor, "H Q d"],
    keys: Float[Tensor, "H L d"],
    values: Float[Tensor, "H L d"],
    mask: Float[Tensor, "H Q L"],
) -> Float[Tensor, "H Q d"]:
    """Return softmax(queries keys^T / sqrt(d)) * mask, times the values."""
    return cast(Tensor, _MaskedAttention.apply(queries, keys, values, mask))


class _AddMasked(torch.autograd.Function):
    """rest + x * mask in one operation, and one backward."""

    @staticmethod
    def forward(ctx: Any, rest: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return torch.addcmul(rest, x, mask)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        (mask,) = ctx.saved_tensors
        return gradient, gradient * mask, None


class _MaskedAttention(torch.autograd.Function):
    """Attention whose scale is part of a product, forward and backward."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        scale = queries.shape[2] ** -0.5
        scores = torch.baddbmm(mask, queries, keys.transpose(1, 2), beta=0, alpha=scale)
        weights = scores.softmax(dim=2)
        masked = weights * mask
        ctx.save_for_backward(queries, keys, values, mask, weights, masked)
        return torch.bmm(masked, values)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        queries, keys, values, mask, weights, masked = ctx.saved_tensors
        scale = queries.shape[2] ** -0.5
        to_weights = torch.bmm(gradient, values.transpose(1, 2)).mul_(mask)
        to_scores = torch.ops.aten._softmax_backward_data(to_weights, weights, 2, weights.dtype)
        return (
            torch.baddbmm(queries, to_scores, keys, beta=0, alpha=scale),
            torch.baddbmm(keys, to_scores.transpose(1, 2), queries, beta=0, alpha=scale),
            torch.bmm(masked.transpose(1, 2), gradient),
            None,
        )
