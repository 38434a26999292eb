"""Train MAR on cached latents (MAR, section 4.1 and appendix B).

Shapes: B batch, c channels of a latent, H W latent grid.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from mar import seeds
from mar.latents.cache import LatentCache
from mar.model.mar import MAR, TrainingDraws
from mar.training.trainer import OptimisationConfig, Step, Trainer, parameter_groups


class TrainingConfig(OptimisationConfig):
    """Section `training` of `params.yaml`: how the generator is trained."""


class InitialWeights(NamedTuple):
    """Weights of a file, under our names; a training draws those that are not among them.

    Attributes:
        chosen: What a training and its average begin with.
        model: What stays beside them where no step is taken.
    """

    chosen: Mapping[str, Tensor]
    model: Mapping[str, Tensor]


def new_trainer(
    model: MAR, config: TrainingConfig, given: InitialWeights | None = None
) -> Trainer[MAR]:
    """Set the weights and return a trainer with the paper's parameter groups.

    Biases, norms and the denoiser do not decay; embeddings and positions do, as in the original.

    Args:
        model: What is trained.
        config: How.
        given: Released weights to begin with, instead of random ones. If no step is to be taken,
            the trainer holds both the raw and the averaged weights of the file.

    Raises:
        ValueError: random weights would be used untrained.
    """
    chosen: Mapping[str, Tensor] = {} if given is None else given.chosen
    if model.state_dict().keys() - chosen.keys():
        if not config.steps:
            raise ValueError(
                "training.steps: must be greater than 0 for a generator that begins with random "
                "weights, got 0"
            )
        model.initialize(seeds.make_rng("weights", config.seed, device=_device(model)))
    model.load_state_dict({**model.state_dict(), **chosen})
    groups = parameter_groups(model, config.weight_decay, without_decay=model.head.parameters())
    trainer = Trainer(model, groups, config)
    if given is not None and not config.steps:
        model.load_state_dict(given.model)
    return trainer


def train(
    trainer: Trainer[MAR],
    cache: LatentCache,
    config: TrainingConfig,
    *,
    micro_batch: int,
    autocast: Callable[[], AbstractContextManager[object]],
) -> Iterator[Step]:
    """Take the remaining steps, yielding each.

    All randomness of a step comes from (seed, step), so a resumed training equals an uninterrupted
    one. It is drawn for the whole batch, so without dropout the loss does not depend on
    `micro_batch`, the number of images whose activations are in memory at a time.
    """
    if trainer.step >= config.steps:  # released weights need no images
        return
    model = trainer.model
    device = _device(model)
    content = "code_indices" if model.config.is_discrete else "moments"
    batches = cache.batches(
        config.batch_size, seed=config.seed, first_step=trainer.step, content=content
    )
    for cached, labels in batches:
        if trainer.step >= config.steps:
            return
        step = trainer.step
        rng = seeds.make_rng("training", config.seed, step, device=device)
        cached = cached.to(device, non_blocking=True)
        # Code indices as one channel, or normalised continuous latents.
        latents = cached[:, None] if model.config.is_discrete else cache.normalise(cached, rng)
        draws = model.draw(len(latents), rng)
        # Dropout alone draws from torch's global generator.
        dropout = seeds.make_rng("dropout", config.seed, step).initial_seed()
        torch.manual_seed(dropout)  # pyright: ignore[reportUnknownMemberType]
        yield trainer.update(
            _losses(model, latents, labels.to(device), draws, micro_batch, autocast)
        )


def _losses(
    model: MAR,
    latents: Shaped[Tensor, "B c H W"],
    labels: Int[Tensor, " B"],
    draws: TrainingDraws,
    micro_batch: int,
    autocast: Callable[[], AbstractContextManager[object]],
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    for start in range(0, len(latents), micro_batch):
        part = slice(start, start + micro_batch)
        with autocast():
            loss = model(latents[part], labels[part], draws[part])
        yield loss * (len(labels[part]) / len(labels)), {}


def _device(model: MAR) -> torch.device:
    return next(model.parameters()).device
