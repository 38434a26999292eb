"""The adversarial part of a tokenizer's training (VQGAN, arXiv 2012.09841; LDM, arXiv 2112.10752).

A discriminator learns to tell images from reconstructions with the hinge loss. The tokenizer is
trained against it, with a weight that balances the gradients of the reconstruction loss and of the
adversarial loss in the last layer.

Shapes: B batch, H W an image, h w the grid of patches.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Discriminator, Field, Tag
from torch import Tensor, nn
from torch.nn.functional import relu

from mar import distributed, seeds
from mar.config import Config, kind
from mar.tokenizer_training.discriminator import PatchDiscriminator, smallest_image
from mar.training.parallelism import add_up_gradients


class R1Config(Config):
    """Penalise the discriminator's gradient on real images (Mescheder et al., arXiv 1801.04406)."""

    kind: Literal["r1"]
    weight: float = Field(
        gt=0, description="gamma, the weight of half the squared gradient of an image's mean logit"
    )


class LeCamConfig(Config):
    """Pull logits towards the average logit of the other kind (Tseng et al., arXiv 2104.03310)."""

    kind: Literal["lecam"]
    weight: float = Field(gt=0, description="weight of the penalty (MAGVIT: 0.001)")
    decay: float = Field(
        gt=0, lt=1, description="decay of the averaged mean logits, per step (LeCam: 0.99)"
    )


class AdversarialConfig(Config):
    """The discriminator, its training, and its weight in the loss of the tokenizer."""

    start_step: int = Field(
        ge=0, description="optimiser steps before the discriminator is used (LDM: 50001)"
    )
    warmup_steps: int = Field(
        ge=0, description="steps after start_step in which the adversarial weight rises linearly"
    )
    weight: float = Field(
        gt=0,
        description="size of the adversarial gradient in the last layer, relative to that of the "
        "reconstruction loss (LDM: 0.5)",
    )
    max_weight: float = Field(
        gt=0,
        description="largest factor by which the adversarial loss is scaled to that end (LDM: 1e4)",
    )
    lr: float = Field(
        gt=0,
        description="constant learning rate of the discriminator; its betas are the tokenizer's",
    )
    base_channels: int = Field(
        gt=0, le=65_536, description="channels after the first layer (LDM: 64)"
    )
    num_layers: int = Field(gt=0, le=12, description="layers that halve the resolution (LDM: 3)")
    regulariser: Annotated[
        Annotated[Literal["none"], Tag("none")]
        | Annotated[R1Config, Tag("r1")]
        | Annotated[LeCamConfig, Tag("lecam")],
        Discriminator(kind),
    ] = Field(description="regulariser of the discriminator (LDM: none)")


def hinge_loss(real: Float[Tensor, "B h w"], fake: Float[Tensor, "B h w"]) -> Float[Tensor, ""]:
    """Return the hinge loss: logits below 1 of images and above -1 of reconstructions cost."""
    return (relu(1 - real).mean() + relu(1 + fake).mean()) / 2


def adaptive_weight(
    reconstruction: Tensor, adversarial: Tensor, *, max_weight: float
) -> Float[Tensor, ""]:
    """Return the factor that makes the second gradient as long as the first (VQGAN, Equation 7).

    Args:
        reconstruction: Gradient of the reconstruction's loss in the last layer.
        adversarial: Gradient of the adversarial loss there.
        max_weight: The largest factor.
    """
    first, second = (nn.utils.get_total_norm([each]) for each in (reconstruction, adversarial))
    return (first / (second + 1e-4)).clamp(max=max_weight)


def gradient_penalty(
    logits: Float[Tensor, "B h w"], images: Float[Tensor, "B 3 H W"]
) -> Float[Tensor, ""]:
    """Return half the squared gradient of an image's mean logit: R1, without its gamma."""
    total = logits.mean(dim=(1, 2)).sum()
    (gradient,) = torch.autograd.grad(total, images, create_graph=True)
    return gradient.square().flatten(1).sum(dim=1).mean() / 2


class LeCam(nn.Module):
    """Averages of the mean logits of real and of fake images, and the penalty that uses them."""

    means: Float[Tensor, "2"]
    steps: Float[Tensor, ""]

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("means", torch.zeros(2))
        self.register_buffer("steps", torch.zeros(()))

    def forward(
        self, real: Float[Tensor, "B h w"], fake: Float[Tensor, "B h w"]
    ) -> Float[Tensor, ""]:
        """Return the penalty; it is zero in the first step, which has no averages yet.

        As in the authors' code, only logits that are further apart than the averages cost. The
        averages change after the step, so all parts of a batch see the same ones.
        """
        known = (
            1 - self.decay**self.steps
        )  # bias correction: the weights of the average so far add up to this
        mean_real, mean_fake = self.means / known.clamp(min=1e-12)
        penalty = relu(real - mean_fake).square().mean() + relu(mean_real - fake).square().mean()
        return penalty * (self.steps > 0)

    def update(
        self, real: Float[Tensor, ""], fake: Float[Tensor, ""], skipped: Float[Tensor, ""]
    ) -> None:
        """Average the mean logits of one more step, unless it was skipped (1, else 0)."""
        means = torch.where(skipped > 0, self.means, torch.stack([real, fake]))
        self.means.lerp_(means, 1 - self.decay)
        self.steps.add_(1 - skipped)


class Adversary(nn.Module):
    """A discriminator in training, with its optimiser."""

    def __init__(
        self,
        config: AdversarialConfig,
        *,
        seed: int,
        betas: tuple[float, float],
        device: torch.device,
    ) -> None:
        super().__init__()
        self.config = config
        self.discriminator = PatchDiscriminator(config.base_channels, config.num_layers).to(device)
        self.discriminator.initialize(seeds.make_rng("discriminator", seed, device=device))
        self.discriminator.requires_grad_(False)  # except in its own step
        regulariser = config.regulariser
        decay = regulariser.decay if isinstance(regulariser, LeCamConfig) else None
        self.lecam = None if decay is None else LeCam(decay).to(device)
        self.optimizer = torch.optim.AdamW(
            self.discriminator.parameters(), lr=config.lr, betas=betas, weight_decay=0, fused=True
        )

    def warmup_factor(self, step: int) -> float:
        """Return the share of its weight that the adversarial loss has after `step` steps."""
        since = step - self.config.start_step
        if since < 0:
            return 0.0
        return min(1.0, (since + 1) / max(self.config.warmup_steps, 1))

    def generator_loss(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, ""]:
        """Return the adversarial loss of the tokenizer: the negative mean logit."""
        return -self.discriminator(images).mean()

    def discriminator_step(
        self,
        images: Float[Tensor, "B 3 H W"],
        reconstructions: Float[Tensor, "B 3 H W"],
        *,
        micro_batch: int,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> dict[str, Float[Tensor, ""]]:
        """Take a step of the discriminator; return numbers for the curves.

        The reconstructions are those of the tokenizer's step just before. LDM makes new ones with
        the weights after that step, which costs another forward pass.

        Args:
            images: This process's share of a batch of images.
            reconstructions: Their reconstructions, detached.
            micro_batch: Images whose activations are in memory at a time.
            autocast: Makes the context of the forward pass.
        """
        self.discriminator.requires_grad_(True)
        self.optimizer.zero_grad()
        totals: dict[str, Tensor] = {}
        whole = len(images) * distributed.num_processes()
        batches = (torch.split(batch, micro_batch) for batch in (images, reconstructions))
        for real, fake in zip(*batches, strict=True):
            share = len(real) / whole
            loss, measured = self._losses(real, fake, autocast)
            (share * loss).backward()  # pyright: ignore[reportUnknownMemberType]
            for name, value in measured.items():
                totals[name] = totals.get(name, 0) + share * value.detach()
        if distributed.is_distributed():
            sums = distributed.add_up(torch.stack(list(totals.values())))
            totals = dict(zip(totals, sums.unbind(), strict=True))
            add_up_gradients(self.discriminator.parameters())
        gradients = [p.grad for p in self.discriminator.parameters() if p.grad is not None]
        norm = totals["discriminator_grad_norm"] = nn.utils.get_total_norm(gradients)
        broken = (~norm.isfinite()).float()  # such a step is skipped
        self.optimizer.found_inf = broken  # pyright: ignore[reportAttributeAccessIssue]
        self.optimizer.step()  # pyright: ignore[reportUnknownMemberType]
        self.discriminator.requires_grad_(False)
        if self.lecam is not None:
            self.lecam.update(totals["logits_real"], totals["logits_fake"], broken)
        return totals

    def _losses(
        self, real: Tensor, fake: Tensor, autocast: Callable[[], AbstractContextManager[object]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what the discriminator minimises on some images, and what to measure."""
        regulariser = self.config.regulariser
        if isinstance(regulariser, R1Config):
            real = real.detach().requires_grad_()
        with autocast():
            logits_real: Tensor = self.discriminator(real)
            logits_fake: Tensor = self.discriminator(fake)
        loss = hinge_loss(logits_real, logits_fake)
        right = ((logits_real > 0).float().mean() + (logits_fake < 0).float().mean()) / 2
        measured = {
            "discriminator_loss": loss,
            "discriminator_accuracy": right,
            "logits_real": logits_real.mean(),
            "logits_fake": logits_fake.mean(),
        }
        match regulariser:
            case R1Config():
                penalty = regulariser.weight * gradient_penalty(logits_real, real)
            case LeCamConfig():
                assert self.lecam is not None
                penalty = regulariser.weight * self.lecam(logits_real, logits_fake)
            case "none":
                return loss, measured
        return loss + penalty, {**measured, regulariser.kind: penalty}


def check_size(config: AdversarialConfig, image_size: int, *, key: str) -> None:
    """Check that images are large enough for the discriminator.

    Raises:
        ValueError: they are not.
    """
    least = smallest_image(config.num_layers)
    if image_size < least:
        raise ValueError(
            f"{key}.num_layers: a value of {config.num_layers} needs images of at least {least} "
            f"px, got {image_size}"
        )
