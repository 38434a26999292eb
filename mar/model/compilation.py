"""Compilation of a model's blocks, and of its denoiser in sampling, by `torch.compile`.

The blocks hold nearly all of a step's work. One graph serves all blocks of a kind and all numbers
of hidden and visible tokens: the lengths are symbols in it, and even without a visible token the
encoder sees the condition tokens. What lies between blocks moves and selects tokens; it runs as it
is, so that activation checkpointing, DDP and FSDP work on blocks as if these were not compiled.
"""

from collections.abc import Callable

from torch import nn

from mar.heads.denoiser import Denoiser, FinalLayer, ResidualBlock
from mar.heads.denoising import compile_denoising
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


def compile_sampling(
    model: nn.Module,
    backend: str | Callable[..., object] = "inductor",
    mode: str | None = "reduce-overhead",
) -> bool:
    """Compile a denoising step of a model that is trained; return whether its head takes any.

    One graph serves all steps, but for a single row without guidance. On a GPU, the mode
    `reduce-overhead` captures it as a CUDA graph for each number of rows, of which a generation has
    a few; not timed on one. On a CPU compiled products are slower (`benchmarks/README.md`).

    Args:
        model: The model, whose weights do not change any more. A copy of it is not compiled.
        backend: Of `torch.compile`.
        mode: Of `torch.compile`, for the backend `inductor`.
    """
    denoisers = [module for module in model.modules() if isinstance(module, Denoiser)]
    for denoiser in denoisers:
        compile_denoising(denoiser, backend, mode)
    return bool(denoisers)
