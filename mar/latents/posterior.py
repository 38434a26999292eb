"""What a tokenizer makes of an image: a grid of latents, or of normal distributions over them.

Shapes: B batch, c channels of a latent, h w the latent grid, X channels of moments (c, or
twice as many where latents have a variance).
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
    """A diagonal normal over latents; without a variance, the latents themselves."""

    mean: Float[Tensor, "B c h w"]
    log_variance: Float[Tensor, "B c h w"] | None

    @classmethod
    def of(cls, moments: Float[Tensor, "B X h w"], channels: int) -> "Posterior":
        """Read an encoder's output for latents of some channels.

        It is means, then log variances, clamped to [-30, 20] (LDM); or of the means alone.
        """
        assert moments.shape[1] in (channels, 2 * channels)
        if moments.shape[1] == channels:
            return cls(moments.float(), None)
        mean, log_variance = moments.float().chunk(2, dim=1)
        return cls(mean, log_variance.clamp(-30, 20))

    def sample(self, eps: Float[Tensor, "B c h w"]) -> Float[Tensor, "B c h w"]:
        """Return mean + std * eps, which is the mean where there is no variance."""
        if self.log_variance is None:
            return self.mean
        return self.mean + torch.exp(0.5 * self.log_variance) * eps

    def kl(self) -> Float[Tensor, " B"]:
        """Return the divergence from a standard normal, in nats, summed over an image's latents."""
        assert self.log_variance is not None  # it would be infinite
        terms = self.mean.square() + self.log_variance.exp() - 1 - self.log_variance
        return 0.5 * terms.flatten(1).sum(dim=1)
