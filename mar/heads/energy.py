"""The energy score: a head that draws a continuous token with one pass of its network.

The network turns noise and z into a token. It is trained by a strictly proper scoring rule, whose
expectation the true distribution alone minimises: there is no likelihood, and no path from noise
to data (EAR, arXiv 2505.07812). It is not in MAR's paper. As in EAR, the network's input is z, and
noise modulates its layers. Unlike there, the noise is normal and has twice a token's channels (EAR:
64 channels, uniform), temperature scales the noise, and training knows no temperature.

Shapes: B batch, M tokens with a loss, R rows (tokens, of any images), C channels of a token, D
width of z, A samples of a token in its loss, K = 2 C channels of noise, W width of the network.
"""

from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from mar.activation_checkpointing import Checkpointed
from mar.config import Config
from mar.heads.base import Condition, Draws, Head, Noise, SamplerSection, guide
from mar.heads.denoiser import (
    FinalLayer,
    NamedOrCustom,
    ResidualBlock,
    denoiser_size,
    initialize_layers,
)
from mar.linear import Linear
from mar.precision import without_autocast


SMALLEST = 1e-8  # is added to squared distances, whose root has no gradient at 0; ours


class EnergyConfig(Config):
    """Section `generator.head` for `kind: energy`."""

    kind: Literal["energy"]
    size: NamedOrCustom = Field(
        description="the network: a size of the paper's denoiser by name, or blocks and width"
    )
    noise_samples_per_token: int = Field(
        ge=2, le=1000, description="independent samples of a token that its loss compares (EAR: 2)"
    )
    alpha: float = Field(
        gt=0, lt=2, description="exponent of distances in the energy score (EAR: 1)"
    )

    @property
    def denoiser_width(self) -> int:
        """Return the width of the network."""
        return denoiser_size(self.size).width


class EnergySampler(Config):
    """Section `sample.head` for `kind: energy`."""

    kind: Literal["energy"]
    temperature: float = Field(gt=0, description="scale of the noise of a token")

    @property
    def num_noises(self) -> int:
        """Return 1: a token takes as much noise again as the initial one."""
        return 1

    def at_step(self, step: int, num_generation_steps: int) -> "EnergySampler":
        """Return itself: all generation steps are alike."""
        return self


class EnergyHead(Checkpointed, Head):
    """Train and sample p(x | z) by a network x(z, noise) and the energy score."""

    def __init__(self, config: EnergyConfig, *, channels: int, z_width: int) -> None:
        super().__init__()
        self.channels = channels
        self.num_samples = config.noise_samples_per_token
        self.alpha = config.alpha
        size = denoiser_size(config.size)
        self.input_proj = Linear(z_width, size.width)
        self.noise_proj = Linear(2 * channels, size.width)
        self.blocks = nn.ModuleList(ResidualBlock(size.width) for _ in range(size.blocks))
        self.final = FinalLayer(size.width, channels)

    def initialize(self, rng: torch.Generator) -> None:
        """Set every weight, as `initialize_layers` says."""
        initialize_layers(self, rng)

    def draw(self, batch: int, num_tokens: int, rng: torch.Generator) -> Draws:
        """Draw the noise of the samples of the tokens that have a loss."""
        shape = (batch, num_tokens, self.num_samples, 2 * self.channels)
        return (torch.randn(shape, generator=rng, device=rng.device),)

    def forward(
        self, z: Float[Tensor, "B M D"], x_0: Float[Tensor, "B M C"], draws: Draws
    ) -> Float[Tensor, "B M 1"]:
        """Return the energy score of each token, estimated from its samples."""
        (noise,) = draws  # (B, M, A, K)
        x = self.input_proj(z)[:, :, None].expand(-1, -1, self.num_samples, -1)
        samples = self.network(x.flatten(0, 2), noise.flatten(0, 2))  # (B * M * A, C)
        samples = samples.float().reshape(*noise.shape[:3], -1)  # (B, M, A, C)
        return energy_score(samples, x_0.float(), self.alpha)

    def network(self, x: Float[Tensor, "R W"], noise: Float[Tensor, "R K"]) -> Float[Tensor, "R C"]:
        """Draw tokens, given z's projection x."""
        y = functional.silu(self.noise_proj(noise))  # (R, W)
        for block in self.blocks:
            x = self.apply_block(partial(block, y=y), x)
        return self.final(x, y)

    @torch.no_grad()
    def sample(
        self, condition: Condition, noise: Noise, sampler: SamplerSection
    ) -> Float[Tensor, "R C"]:
        """Sample a token for each row, in float32, also under autocast.

        Guidance combines z with class and z without before the network, which is then called once
        (EAR's code). Combining the tokens that it makes of both scored alike, for two calls.
        """
        assert isinstance(sampler, EnergySampler)
        with without_autocast(condition.z.device):
            z = condition.z.float()
            if condition.z_null is not None:
                z = guide(condition.z_null.float(), z, condition.scale)
            both = torch.cat([noise.initial, noise.steps[0]], dim=1)  # (R, K)
            return self.network(self.input_proj(z), sampler.temperature * both)


def energy_score(
    samples: Float[Tensor, "B M A C"], x_0: Float[Tensor, "B M C"], alpha: float
) -> Float[Tensor, "B M 1"]:
    """Return mean |x - x_0|^alpha - mean |x - x'|^alpha / 2 over the samples x and their pairs.

    Its expectation over x_0 is least where the samples are distributed as x_0 is, and there alone
    (Gneiting and Raftery 2007, section 4.3; negative, so that it is a loss).
    """
    count = samples.shape[2]
    first, second = torch.triu_indices(count, count, 1, device=samples.device)  # of each pair once
    between = samples.index_select(2, first) - samples.index_select(2, second)
    near = distance(samples - x_0[:, :, None], alpha).mean(dim=2, keepdim=True)
    return near - distance(between, alpha).mean(dim=2, keepdim=True) / 2


def distance(difference: Float[Tensor, "B M P C"], alpha: float) -> Float[Tensor, "B M P"]:
    """Return the length of each difference, to the power of alpha."""
    return (difference.square().sum(dim=3) + SMALLEST) ** (alpha / 2)
