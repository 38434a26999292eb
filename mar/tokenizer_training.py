"""Train a tokenizer: reconstruction, and what its kind minimises besides.

Shapes: B batch, H W an image.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from torch import Tensor

from mar import seeds
from mar.images import to_float
from mar.optimisation import OptimisationConfig, Step, Trainer, parameter_groups
from mar.tokenizer_interface import Codes, Draws, Reconstruction, Tokenizer


class TokenizerTrainingConfig(OptimisationConfig):
    """Section `tokenizer_training` of `params.yaml`."""

    steps: int = Field(
        ge=0,
        description="optimiser steps; 0 takes given weights (released) as they are; a tokenizer "
        "without weights (pixels) takes none",
    )
    flips: bool = Field(description="mirror half of the images at random")


def new_trainer(
    tokenizer: Tokenizer,
    config: TokenizerTrainingConfig,
    given: Mapping[str, Tensor] | None = None,
) -> Trainer[Tokenizer]:
    """Set the weights, to those given or initial ones, and return a trainer.

    Raises:
        ValueError: initial weights would not be trained.
    """
    if given is not None:
        tokenizer.load_state_dict(given)
    elif config.steps or not list(tokenizer.parameters()):
        tokenizer.initialize(seeds.generator("weights", config.seed, device=tokenizer.device))
    else:
        raise ValueError(
            "tokenizer_training.steps: must be greater than 0 for a tokenizer that begins with "
            "random weights, got 0"
        )
    return Trainer(tokenizer, parameter_groups(tokenizer, config.weight_decay), config)


def loss_terms(
    images: Float[Tensor, "B 3 H W"], reconstruction: Reconstruction
) -> dict[str, Float[Tensor, ""]]:
    """Return the weighted terms of the loss; their sum is what is minimised.

    As in LDM, they are sums over an image.
    """
    difference = (images - reconstruction.images.float()).abs()
    return {"l1": difference.flatten(1).sum(dim=1).mean(), **reconstruction.terms}


def train(
    trainer: Trainer[Tokenizer],
    batches: Iterable[tuple[UInt8[Tensor, "B 3 H W"], Int[Tensor, " B"]]],
    config: TokenizerTrainingConfig,
    *,
    micro_batch: int,
    autocast: Callable[[], AbstractContextManager[object]],
) -> Iterator[Step]:
    """Take the steps that are left, yielding each; all randomness of one comes from (seed, step).

    A tokenizer without weights takes none.

    Args:
        trainer: What is trained; it may have taken steps before.
        batches: The batches of the steps that are left.
        config: How to train.
        micro_batch: Images whose activations are held at a time.
        autocast: Makes the context of the forward pass.
    """
    tokenizer = trainer.model
    if not list(tokenizer.parameters()) or trainer.step >= config.steps:
        return
    device = tokenizer.device
    for images, _ in batches:
        if trainer.step >= config.steps:
            return
        generator = seeds.generator("tokenizer", config.seed, trainer.step, device=device)
        whole = to_float(images.to(device))
        if config.flips:
            mirrored = torch.rand(len(whole), generator=generator, device=device) < 0.5
            whole = torch.where(mirrored[:, None, None, None], whole.flip(3), whole)
        grid = [side // tokenizer.stride for side in whole.shape[2:]]
        # For the whole batch, so that a step does not depend on `micro_batch`.
        draws = tokenizer.draw(len(whole), grid, generator, step=trainer.step)
        codes: list[Codes] = []
        step = trainer.update(_losses(tokenizer, whole, draws, codes, micro_batch, autocast))
        measured = tokenizer.after_step(trainer.ema, codes, generator)
        yield replace(step, terms={**step.terms, **measured})


def _losses(
    tokenizer: Tokenizer,
    images: Float[Tensor, "B 3 H W"],
    draws: Draws,
    codes: list[Codes],
    micro_batch: int,
    autocast: Callable[[], AbstractContextManager[object]],
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Yield the loss and the terms of each part of a batch, and gather the parts' codes."""
    for start in range(0, len(images), micro_batch):
        rows = slice(start, start + micro_batch)
        part = images[rows]
        with autocast():
            reconstruction: Reconstruction = tokenizer(part, tuple(draw[rows] for draw in draws))
        if reconstruction.codes is not None:
            codes.append(reconstruction.codes)
        share = len(part) / len(images)
        terms = loss_terms(part, reconstruction)
        weighted = {name: share * term for name, term in terms.items()}
        yield torch.stack(list(weighted.values())).sum(), weighted
