"""Settings, draws and network that heads on the straight path from data to noise share.

The path is x_t = (1 - t) x_0 + t eps, with times from 0 (data) to 1 (noise), as in rectified flow
(arXiv 2209.03003). Its velocity is eps - x_0 at every t.

Shapes: B batch, M tokens with a loss, C channels of a token, A independent draws for each token.
"""

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from mar.config import Config
from mar.heads.annealing import AnnealedSampler
from mar.heads.base import Head
from mar.heads.denoiser import Denoiser, NamedOrCustom, denoiser_size


class LogitNormal(Config):
    """The distribution of 1 / (1 + exp(-n)), n being normal."""

    mean: float = Field(description="of n; below 0, more times are near the data")
    std: float = Field(gt=0, description="of n; SD3: mean 0, standard deviation 1")


class PathSection(Config):
    """Section `generator.head` of these heads."""

    size: NamedOrCustom = Field(
        description="the denoiser: a size of the paper by name, or blocks and width"
    )
    noise_samples_per_token: int = Field(
        gt=0, le=1000, description="independent (t, eps) for each token"
    )
    times: LogitNormal | None = Field(
        description="distribution of times in training: logit-normal (SD3, section 3.1), or null "
        "for uniform"
    )

    @property
    def denoiser_width(self) -> int:
        """Return the width of the denoiser."""
        return denoiser_size(self.size).width


class PathSampler(AnnealedSampler):
    """Section `sample.head` of these heads."""

    temperature: float = Field(gt=0, description="scale of the initial noise of a token")

    @property
    def num_noises(self) -> int:
        """Return 0: a token takes the initial noise alone."""
        return 0


class PathHead(Head):
    """A head whose network, that of the Diffusion Loss, predicts a velocity from x_t."""

    def __init__(self, config: PathSection, *, channels: int, z_width: int) -> None:
        super().__init__()
        self.channels = channels
        self.noise_samples_per_token = config.noise_samples_per_token
        self.times = config.times
        size = denoiser_size(config.size)
        self.denoiser = Denoiser(size, channels=channels, out_channels=channels, z_width=z_width)

    def initialize(self, rng: torch.Generator) -> None:
        """Set every weight, as `Denoiser.initialize` says."""
        self.denoiser.initialize(rng)

    def draw_times(
        self, batch: int, num_tokens: int, rng: torch.Generator
    ) -> Float[Tensor, "B M A"]:
        """Draw times by the section `times`."""
        shape = (batch, num_tokens, self.noise_samples_per_token)
        return draw_times(self.times, shape, rng)

    def draw_eps(
        self, batch: int, num_tokens: int, rng: torch.Generator
    ) -> Float[Tensor, "B M A C"]:
        """Draw the noise of each time."""
        shape = (batch, num_tokens, self.noise_samples_per_token, self.channels)
        return torch.randn(shape, generator=rng, device=rng.device)


def draw_times(
    times: LogitNormal | None, shape: tuple[int, int, int], rng: torch.Generator
) -> Float[Tensor, "B M A"]:
    """Draw times from 0 (data) to 1 (noise), logit-normal or, for None, uniform."""
    if times is None:
        return torch.rand(shape, generator=rng, device=rng.device)
    normal = torch.randn(shape, generator=rng, device=rng.device)
    return torch.sigmoid(times.mean + times.std * normal)


def on_path(
    x_0: Float[Tensor, "B M C"], t: Float[Tensor, "B M A"], eps: Float[Tensor, "B M A C"]
) -> tuple[Float[Tensor, "B M A C"], Float[Tensor, "B M A C"]]:
    """Return x_t of each draw, and the velocity of its path."""
    data = x_0[:, :, None].float()  # (B, M, 1, C)
    return torch.lerp(data.expand_as(eps), eps, t[..., None]), eps - data
