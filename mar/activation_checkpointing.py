"""Blocks whose activations are computed again in the backward pass instead of being kept.

It takes about a third more time and changes no number; what it takes less is most of the memory of
a training. Both the transformer and the denoiser, which sees each hidden token several times, are
stacks of such blocks.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]


class Checkpointed(nn.Module):
    """A module that applies its blocks by `apply_block`."""

    checkpointing = False

    def apply_block(self, block: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Apply a block; with `checkpointing`, the backward pass computes its inside again."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, use_reentrant=False)
        return block(x)


def set_checkpointing(model: nn.Module, on: bool) -> None:
    """Tell all parts of a model whether to compute activations again."""
    for module in model.modules():
        if isinstance(module, Checkpointed):
            module.checkpointing = on
