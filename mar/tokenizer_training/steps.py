"""The steps of a tokenizer's training: a batch's losses in parts, and what each draws.

Shapes: B batch, H W an image.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from mar import distributed, seeds
from mar.data.batches import batch_indices
from mar.data.dataset import ImageSet
from mar.data.images import to_float
from mar.tokenizer_training.adversary import adaptive_weight
from mar.tokenizer_training.trainer import (
    TokenizerTrainer,
    TokenizerTrainingConfig,
    is_trainable,
)
from mar.tokenizers.interface import Codes, Draws, Reconstruction
from mar.training.step import Step


def train(
    trainer: TokenizerTrainer,
    batches: Iterable[tuple[UInt8[Tensor, "B 3 H W"], Int[Tensor, " B"]]],
    config: TokenizerTrainingConfig,
    *,
    micro_batch: int,
    autocast: Callable[[], AbstractContextManager[object]],
) -> Iterator[Step]:
    """Take the remaining steps, yielding each; all randomness of one comes from (seed, step).

    A tokenizer without weights takes none.

    Args:
        trainer: What is trained; it may have taken steps before.
        batches: This process's share of the batches of the remaining steps.
        config: How to train.
        micro_batch: Images whose activations are in memory at a time.
        autocast: Makes the context of the forward pass.
    """
    tokenizer = trainer.model
    if not is_trainable(tokenizer) or trainer.step >= config.steps:
        return
    device = tokenizer.device
    for images, _ in batches:
        if trainer.step >= config.steps:
            return
        rng = seeds.make_rng("tokenizer", config.seed, trainer.step, device=device)
        pixels = to_float(images.to(device))
        # Drawn for the whole batch, so that a step depends neither on `micro_batch` nor on the
        # number of processes.
        whole = len(pixels) * distributed.num_processes()
        share = distributed.batch_share(whole)
        if config.flips:
            mirrored = (torch.rand(whole, generator=rng, device=device) < 0.5)[share]
            pixels = torch.where(mirrored[:, None, None, None], pixels.flip(3), pixels)
        grid = [side // tokenizer.stride for side in pixels.shape[2:]]
        draws = tokenizer.draw(whole, grid, rng, step=trainer.step)
        draws = tuple(draw[share] for draw in draws)
        batch = _Batch(trainer, pixels, draws, micro_batch, autocast)
        step = trainer.update(batch.losses())
        measured = tokenizer.after_step(trainer.ema, batch.whole_codes(), rng)
        yield replace(step, terms={**step.terms, **measured, **batch.discriminate()})


@torch.no_grad()
def broken_images(
    trainer: TokenizerTrainer,
    images: ImageSet,
    config: TokenizerTrainingConfig,
    step: int,
    *,
    autocast: Callable[[], AbstractContextManager[object]],
) -> list[str]:
    """Return the paths of the images of a step's batch whose loss, alone, is not finite."""
    tokenizer = trainer.model
    rng = seeds.make_rng("tokenizer", config.seed, step, device=tokenizer.device)
    found: list[str] = []
    for index in batch_indices(len(images), config.batch_size, seed=config.seed, step=step):
        pixels = to_float(images.stack([int(index)]).to(tokenizer.device))
        grid = [side // tokenizer.stride for side in pixels.shape[2:]]
        with autocast():
            decoded = tokenizer(pixels, tokenizer.draw(1, grid, rng, step=step)).images.float()
        error, _ = trainer.loss(pixels, decoded, autocast=autocast)
        if not error.isfinite():
            found.append(images.names[int(index)])
    return found


@dataclass(frozen=True)
class _Pass:
    """What the forward pass of a part of a batch computed.

    Attributes:
        share: The part's share of the batch.
        reconstruction: The output of the tokenizer.
        error: The reconstruction loss.
        terms: The terms of `error`.
        generator_loss: The adversarial loss; zero before the discriminator is used.
    """

    share: float
    reconstruction: Reconstruction
    error: Float[Tensor, ""]
    terms: dict[str, Float[Tensor, ""]]
    generator_loss: Float[Tensor, ""]


@dataclass
class _Batch:
    """This process's share of a batch in a training step, which processes it in parts.

    Attributes:
        codes: Codes of the parts that `losses` has yielded.
        decoded: Reconstructions of these parts, detached, if the discriminator is trained.
    """

    trainer: TokenizerTrainer
    images: Float[Tensor, "B 3 H W"]
    draws: Draws
    micro_batch: int
    autocast: Callable[[], AbstractContextManager[object]]
    codes: list[Codes] = field(default_factory=list[Codes])
    decoded: list[Tensor] = field(default_factory=list[Tensor])

    def __post_init__(self) -> None:
        adversary, step = self.trainer.adversary, self.trainer.step
        self.warmup_factor = 0.0 if adversary is None else adversary.warmup_factor(step)

    @property
    def whole(self) -> int:
        """Images of the whole batch."""
        return len(self.images) * distributed.num_processes()

    def whole_codes(self) -> list[Codes]:
        """Return the codes of the whole batch, of all processes."""
        if not self.codes or not distributed.is_distributed():
            return self.codes
        latents = torch.cat([part.latents for part in self.codes])
        indices = torch.cat([part.indices for part in self.codes])
        return [Codes(distributed.concatenate(latents), distributed.concatenate(indices))]

    def losses(self) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Yield the loss and the terms of each part, weighted by its share of the batch."""
        starts = range(0, len(self.images), self.micro_batch)
        weight, first = self._weigh(starts) if self.warmup_factor else (None, None)
        for start in starts:
            done, first = first or self._pass(start), None
            if done.reconstruction.codes is not None:
                self.codes.append(done.reconstruction.codes)
            minimised = {"error": done.error, **done.reconstruction.terms}
            terms = {**done.terms, **done.reconstruction.terms}
            if weight is not None:
                assert self.trainer.adversary is not None
                factor = self.warmup_factor * self.trainer.adversary.config.weight * weight
                minimised["adversarial"] = factor * done.generator_loss
                terms |= {
                    "adversarial": minimised["adversarial"],
                    "generator_loss": done.generator_loss,
                    "adaptive_weight": weight,
                }
                self.decoded.append(done.reconstruction.images.detach().float())
            loss = done.share * torch.stack(list(minimised.values())).sum()
            yield loss, {name: done.share * term for name, term in terms.items()}

    def discriminate(self) -> dict[str, Float[Tensor, ""]]:
        """Take a step of the discriminator on the batch; return numbers for the curves."""
        if self.trainer.adversary is None or not self.warmup_factor:
            return {}
        return self.trainer.adversary.discriminator_step(
            self.images,
            torch.cat(self.decoded),
            micro_batch=self.micro_batch,
            autocast=self.autocast,
        )

    def _pass(self, start: int) -> _Pass:
        rows = slice(start, start + self.micro_batch)
        part = self.images[rows]
        with self.autocast():
            reconstruction: Reconstruction = self.trainer.model(
                part, tuple(draw[rows] for draw in self.draws)
            )
        decoded = reconstruction.images.float()
        error, terms = self.trainer.loss(part, decoded, autocast=self.autocast)
        generator_loss = torch.zeros_like(error)
        if self.warmup_factor:
            assert self.trainer.adversary is not None
            with self.autocast():
                generator_loss = self.trainer.adversary.generator_loss(decoded)
        return _Pass(len(part) / self.whole, reconstruction, error, terms, generator_loss)

    def _weigh(self, starts: range) -> tuple[Float[Tensor, ""], _Pass]:
        """Return the adaptive weight of the whole batch, and the forward pass of its first part.

        The weight is needed before the first backward pass, so all parts but one go through the
        tokenizer twice. One weight for each part would avoid that, but the step would then depend
        on the number of parts.
        """
        assert self.trainer.adversary is not None
        gradients: list[tuple[Tensor, Tensor]] = []
        done: _Pass | None = None
        for start in reversed(starts):
            done = None  # frees the activations of the part before
            done = self._pass(start)
            gradients.append(self._last_gradients(done))
        assert done is not None
        error, adversarial = (
            distributed.add_up(torch.stack(parts).sum(dim=0))
            for parts in zip(*gradients, strict=True)
        )
        max_weight = self.trainer.adversary.config.max_weight
        return adaptive_weight(error, adversarial, max_weight=max_weight), done

    def _last_gradients(self, done: _Pass) -> tuple[Tensor, Tensor]:
        """Return a part's gradients of both losses in the last layer."""
        layer = self.trainer.model.last_layer
        assert layer is not None
        losses = (done.share * done.error, done.share * done.generator_loss)
        error, adversarial = (
            torch.autograd.grad(loss, layer, retain_graph=True)[0] for loss in losses
        )
        return error, adversarial
