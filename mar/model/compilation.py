"""Compilation of a model's blocks by `torch.compile`.

The blocks hold nearly all of a step's work. One graph serves all blocks of a kind and all numbers
of hidden and visible tokens: the lengths are symbols in it, and even without a visible token the
encoder sees the condition tokens. What lies between blocks moves and selects tokens; it runs as it
is, so that activation checkpointing, DDP and FSDP work on blocks as if these were not compiled.
"""

from collections.abc import Callable

from torch import nn

from mar.heads.denoiser import FinalLayer, ResidualBlock
from mar.heads.diffusion import Schedule
from mar.model.block import Block


COMPILED = (Block, ResidualBlock, FinalLayer, Schedule)


def compile_blocks(model: nn.Module, backend: str | Callable[..., object] = "inductor") -> None:
    """Compile the blocks of a model in place, when they are first called.

    Names of parameters stay the same. A copy of the model (`copy.deepcopy`) is not compiled.
    """
    for module in model.modules():
        if isinstance(module, COMPILED):
            module.compile(  # pyright: ignore[reportUnknownMemberType]
                fullgraph=True, dynamic=True, backend=backend
            )
