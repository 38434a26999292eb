"""Train MAR on cached latents (MAR, section 4.1 and appendix B).

Shapes: B batch, c channels of a latent, H W latent grid.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from itertools import count
from typing import NamedTuple

import torch
from jaxtyping import Shaped
from pydantic import Field
from torch import Tensor

from mar import distributed, seeds
from mar.averaging.power import AveragesConfig
from mar.data.batches import batch_indices
from mar.distributed import Parallel
from mar.latents.cache import LatentCache
from mar.model.mar import MAR, TrainingDraws
from mar.text.cache import TextCache
from mar.training.optimisation import OptimisationConfig, ParameterGroup, parameter_groups
from mar.training.step import Step
from mar.training.trainer import Trainer


class TrainingConfig(OptimisationConfig):
    """Section `training` of `params.yaml`: how the generator is trained."""

    averages: AveragesConfig | None = Field(
        description="further averages, kept so that any other can be rebuilt; null for none"
    )


class InitialWeights(NamedTuple):
    """Weights of a file, under our names; a training draws those that are not among them.

    Attributes:
        chosen: What a training and its average begin with.
        model: What stays beside them where no step is taken.
    """

    chosen: Mapping[str, Tensor]
    model: Mapping[str, Tensor]


def new_trainer(
    model: MAR,
    config: TrainingConfig,
    given: InitialWeights | None = None,
    *,
    parallel: Parallel = "ddp",
) -> Trainer[MAR]:
    """Set the weights and return a trainer with the paper's parameter groups.

    Biases, norms and the denoiser do not decay; embeddings and positions do, as in the original.

    Args:
        model: What is trained.
        config: How.
        given: Released weights to begin with, instead of random ones. If no step is to be taken,
            the trainer holds both the raw and the averaged weights of the file.
        parallel: How several processes work together.

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
    groups = partial(_groups, weight_decay=config.weight_decay)
    # Nothing is divided among processes that take no step.
    widths = config.averages.widths if config.averages and config.steps else ()
    trainer = Trainer(model, groups, config, parallel if config.steps else "none", widths)
    if given is not None and not config.steps:
        model.load_state_dict(given.model)
    return trainer


def _groups(model: MAR, weight_decay: float) -> list[ParameterGroup]:
    return parameter_groups(model, weight_decay, without_decay=model.head.parameters())


def train(
    trainer: Trainer[MAR],
    cache: LatentCache,
    config: TrainingConfig,
    *,
    micro_batch: int,
    autocast: Callable[[], AbstractContextManager[object]],
    texts: TextCache | None = None,
) -> Iterator[Step]:
    """Take the remaining steps, yielding each.

    All randomness of a step comes from (seed, step), so a resumed training equals an uninterrupted
    one. It is drawn for the whole batch, of which each process takes its share, so the loss depends
    neither on the number of processes nor, without dropout, on `micro_batch`: the number of images
    whose activations are in memory at a time.

    Raises:
        ValueError: the batch does not divide among the processes.
    """
    if trainer.step >= config.steps:  # released weights need no images
        return
    model = trainer.model
    device = _device(model)
    share = distributed.batch_share(config.batch_size, "training.batch_size")
    content = "code_indices" if model.config.is_discrete else "moments"
    batches = cache.batches(
        config.batch_size,
        seed=config.seed,
        first_step=trainer.step,
        content=content,
        part=share,
        device=device,
    )
    tokens = texts and _tokens_of_steps(texts, cache, config, trainer.step, share)
    for cached, labels in batches:
        given = labels if tokens is None else next(tokens)
        if trainer.step >= config.steps:
            return
        latents, draws = _draw(model, cache, cached, config, trainer.step, share)
        given = given.to(device, non_blocking=True)
        yield trainer.update(
            _losses(trainer, latents, given, draws[share], share.start, micro_batch, autocast)
        )


@torch.no_grad()
def broken_samples(
    trainer: Trainer[MAR],
    cache: LatentCache,
    config: TrainingConfig,
    step: int,
    *,
    autocast: Callable[[], AbstractContextManager[object]],
    texts: TextCache | None = None,
) -> list[str]:
    """Return the names of the samples of a step's batch whose loss, alone, is not finite.

    In several processes, all look at the whole batch.
    """
    device = _device(trainer.model)
    indices = batch_indices(len(cache), config.batch_size, seed=config.seed, step=step)
    content = "code_indices" if trainer.model.config.is_discrete else "moments"
    batches = cache.batches(config.batch_size, seed=config.seed, first_step=step, content=content)
    cached, labels = next(iter(batches))
    given = labels if texts is None else _tokens(texts, cache, config, slice(None), step)
    latents, draws = _draw(trainer.model, cache, cached.to(device), config, step)
    found: list[str] = []
    for place in range(config.batch_size):
        one = slice(place, place + 1)
        with autocast():
            loss = trainer.network(latents[one], given[one].to(device), draws[one])
        if not loss.isfinite():
            found.append(cache.names[int(indices[place])])
    return found


def _draw(
    model: MAR,
    cache: LatentCache,
    cached: Tensor,
    config: TrainingConfig,
    step: int,
    part: slice = slice(None),
) -> tuple[Shaped[Tensor, "B c H W"], TrainingDraws]:
    """Return the latents of a part of a batch, and the draws for the whole batch."""
    rng = seeds.make_rng("training", config.seed, step, device=cached.device)
    if model.config.is_discrete:
        latents = cached[:, None]  # code indices, as one channel
    else:
        latents = cache.normalise(cached, rng, batch_size=config.batch_size, part=part)
    return latents, model.draw(config.batch_size, rng)


def _tokens(
    texts: TextCache,
    cache: LatentCache,
    config: TrainingConfig,
    part: slice,
    step: int,
) -> Shaped[Tensor, "B ..."]:
    """Return the tokens of a caption of each image of a part of a batch, chosen at random."""
    images = batch_indices(len(cache), config.batch_size, seed=config.seed, step=step)
    chance = torch.rand(len(images), generator=seeds.make_rng("captions", config.seed, step))
    return texts.tokens(images[part], chance[part])


def _tokens_of_steps(
    texts: TextCache, cache: LatentCache, config: TrainingConfig, first_step: int, part: slice
) -> Iterator[Shaped[Tensor, "B ..."]]:
    """Yield the tokens of a part of each batch; a thread reads those of files a step ahead."""
    read = partial(_tokens, texts, cache, config, part)
    if not texts.is_read:
        yield from map(read, count(first_step))
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(read, first_step)
        for step in count(first_step + 1):
            tokens = ahead.result()
            ahead = reader.submit(read, step)
            yield tokens


def _losses(
    trainer: Trainer[MAR],
    latents: Shaped[Tensor, "B c H W"],
    given: Shaped[Tensor, "B ..."],
    draws: TrainingDraws,
    first: int,
    micro_batch: int,
    autocast: Callable[[], AbstractContextManager[object]],
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Yield the loss of each part of this process's share, whose first sample is number `first`."""
    config = trainer.config
    for start in range(0, len(latents), micro_batch):
        part = slice(start, start + micro_batch)
        # Dropout alone draws from torch's global generator.
        place = [first + start] if first + start else []
        dropout = seeds.make_rng("dropout", config.seed, trainer.step, *place).initial_seed()
        torch.manual_seed(dropout)  # pyright: ignore[reportUnknownMemberType]
        with trainer.accumulate(last=start + micro_batch >= len(latents)):
            with autocast():
                loss = trainer.network(latents[part], given[part], draws[part])
            yield loss * (len(latents[part]) / config.batch_size), {}


def _device(model: MAR) -> torch.device:
    return next(model.parameters()).device
