"""Train a KL autoencoder: reconstruction plus a small pull of the posterior towards a normal (LDM).

Shapes: B batch, H W an image, c channels of a latent, h w the latent grid.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager

import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from torch import Tensor

from mar import seeds
from mar.autoencoder import AutoencoderKL
from mar.images import to_float
from mar.optimisation import OptimisationConfig, Step, Trainer, parameter_groups
from mar.posterior import Posterior


class TokenizerTrainingConfig(OptimisationConfig):
    """Section `tokenizer_training` of `params.yaml`."""

    kl_weight: float = Field(ge=0, description="weight of the KL divergence (LDM: 1e-6)")
    flips: bool = Field(description="mirror half of the images at random")


def new_trainer(
    tokenizer: AutoencoderKL, config: TokenizerTrainingConfig
) -> Trainer[AutoencoderKL]:
    """Initialise the weights and return a trainer."""
    device = next(tokenizer.parameters()).device
    tokenizer.initialize(seeds.generator("weights", config.seed, device=device))
    return Trainer(tokenizer, parameter_groups(tokenizer, config.weight_decay), config)


def loss_terms(
    images: Float[Tensor, "B 3 H W"],
    reconstruction: Float[Tensor, "B 3 H W"],
    posterior: Posterior,
    config: TokenizerTrainingConfig,
) -> dict[str, Float[Tensor, ""]]:
    """Return the weighted terms of the loss; their sum is what is minimised.

    As in LDM, both are sums over an image, so that `kl_weight` means what it means there.
    """
    l1 = (images - reconstruction.float()).abs().flatten(1).sum(dim=1).mean()
    return {"l1": l1, "kl": config.kl_weight * posterior.kl().mean()}


def train(
    trainer: Trainer[AutoencoderKL],
    batches: Iterable[tuple[UInt8[Tensor, "B 3 H W"], Int[Tensor, " B"]]],
    config: TokenizerTrainingConfig,
    *,
    micro_batch: int,
    autocast: Callable[[], AbstractContextManager[object]],
) -> Iterator[Step]:
    """Take the steps that are left, yielding each; all randomness of one comes from (seed, step).

    Args:
        trainer: What is trained; it may have taken steps before.
        batches: The batches of the steps that are left.
        config: How to train.
        micro_batch: Images whose activations are held at a time.
        autocast: Makes the context of the forward pass.
    """
    tokenizer = trainer.model
    device = next(tokenizer.parameters()).device
    for images, _ in batches:
        if trainer.step >= config.steps:
            return
        generator = seeds.generator("tokenizer", config.seed, trainer.step, device=device)
        whole = to_float(images.to(device))
        if config.flips:
            mirrored = torch.rand(len(whole), generator=generator, device=device) < 0.5
            whole = torch.where(mirrored[:, None, None, None], whole.flip(3), whole)
        latent = tokenizer.config
        size = [side // latent.stride for side in whole.shape[2:]]
        # For the whole batch, so that a step does not depend on `micro_batch`.
        eps = torch.randn(
            len(whole), latent.latent_channels, *size, generator=generator, device=device
        )
        yield trainer.update(_losses(tokenizer, whole, eps, config, micro_batch, autocast))


def _losses(
    tokenizer: AutoencoderKL,
    images: Float[Tensor, "B 3 H W"],
    eps: Float[Tensor, "B c h w"],
    config: TokenizerTrainingConfig,
    micro_batch: int,
    autocast: Callable[[], AbstractContextManager[object]],
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    for start in range(0, len(images), micro_batch):
        part = images[start : start + micro_batch]
        with autocast():
            posterior = Posterior.of(tokenizer.encode(part))
            noise = eps[start : start + micro_batch]
            reconstruction = tokenizer.decode(posterior.sample(noise))
        share = len(part) / len(images)
        terms = loss_terms(part, reconstruction, posterior, config)
        weighted = {name: share * term for name, term in terms.items()}
        yield torch.stack(list(weighted.values())).sum(), weighted
