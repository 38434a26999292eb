"""Generation in halves: one of a checkerboard slowly, then the rest in a few steps.

A token next to known ones is easier to draw than one far from them, so the second half, of which
each token has all its neighbours, takes few steps (Generation then Reconstruction, GtR, arXiv
2510.17171). Its selection of tokens by frequency is not here.

Shapes: B batch, N tokens of an image.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mar.model.masking import num_hidden_after


def checkerboard(rows: int, columns: int) -> Bool[Tensor, " N"]:
    """Return which positions are the first half of a checkerboard, from the first position on."""
    return (torch.arange(rows)[:, None] + torch.arange(columns)).flatten() % 2 == 0


def last_in_orders(orders: Int[Tensor, "B N"], chosen: Bool[Tensor, " N"]) -> Int[Tensor, "B N"]:
    """Move chosen positions to the end of the orders, where they are generated first."""
    return orders.gather(1, chosen.to(orders.device)[orders].int().argsort(dim=1, stable=True))


def hidden_counts(
    num_steps: int, reconstruction_steps: int | None, first: int, second: int
) -> list[int]:
    """Return how many tokens are still hidden after each generation step.

    Args:
        num_steps: Of the whole generation; no half takes more steps than it has hidden tokens.
        reconstruction_steps: Those for the second half; None for a generation without halves.
        first: Hidden tokens of the first half.
        second: Hidden tokens of the second half.
    """
    if reconstruction_steps is None:
        parts = [(first + second, num_steps, 0)]
    else:
        slow = (first, num_steps - reconstruction_steps, second)
        parts = [slow, (second, reconstruction_steps, 0)]
    return [
        left + after
        for count, steps, after in parts
        if count
        for left in num_hidden_after(count, min(steps, count))
    ]


def check_halves(num_steps: int, reconstruction_steps: int | None, *, any_order: bool) -> None:
    """Check that a model can be sampled in halves, if it shall be.

    Raises:
        ValueError: the message names the key, what was found and what was expected.
    """
    if reconstruction_steps is None:
        return
    if not any_order:
        raise ValueError(
            "sample.reconstruction_steps: must be null where sample.order is confidence, or the "
            "model was not trained to draw tokens in any order (generator.order random, "
            f"generator.attention bidirectional); got {reconstruction_steps}"
        )
    if reconstruction_steps >= num_steps:
        raise ValueError(
            f"sample.reconstruction_steps: must be below sample.num_steps, {num_steps}, of which "
            f"they are part; got {reconstruction_steps}"
        )
