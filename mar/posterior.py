"""What a tokenizer makes of an image: a normal distribution over each latent of a grid.

Shapes: B batch, c channels of a latent, h w the latent grid, X twice the latent channels.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class LatentShape:
    """What the tokenizer makes of one image: a grid of `height` x `width` latents."""

    channels: int
    height: int
    width: int


@dataclass(frozen=True)
class Posterior:
    """A diagonal normal over latents."""

    mean: Float[Tensor, "B c h w"]
    log_variance: Float[Tensor, "B c h w"]

    @classmethod
    def of(cls, moments: Float[Tensor, "B X h w"]) -> "Posterior":
        """Read the encoder's output: means, then log variances, clamped to [-30, 20] (LDM)."""
        mean, log_variance = moments.float().chunk(2, dim=1)
        return cls(mean, log_variance.clamp(-30, 20))

    def sample(self, eps: Float[Tensor, "B c h w"]) -> Float[Tensor, "B c h w"]:
        """Return mean + std * eps."""
        return self.mean + torch.exp(0.5 * self.log_variance) * eps

    def kl(self) -> Float[Tensor, " B"]:
        """Return the divergence from a standard normal, in nats, summed over an image's latents."""
        terms = self.mean.square() + self.log_variance.exp() - 1 - self.log_variance
        return 0.5 * terms.flatten(1).sum(dim=1)
