"""The L2 head: predict the mean of a token, not its distribution.

MAR's negative control (section 5.1): its samples are poor.

Shapes: B batch, M tokens with a loss, R rows (tokens, of any images), C channels of a token, D
width of z.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mar.config import Config
from mar.heads.base import Condition, Draws, Head, Noise, SamplerSection
from mar.linear import Linear


class L2Config(Config):
    """Section `generator.head` for `kind: l2`."""

    kind: Literal["l2"]

    @property
    def denoiser_width(self) -> None:
        """Return None: there is no denoiser."""


class L2Sampler(Config):
    """Section `sample.head` for `kind: l2`: nothing is random, so there are no settings."""

    kind: Literal["l2"]

    @property
    def num_noises(self) -> int:
        """Return 0: a token takes the initial noise alone."""
        return 0

    def at_step(self, step: int, num_generation_steps: int) -> "L2Sampler":
        """Return itself: all generation steps are alike."""
        return self


class L2(Head):
    """Predict the mean of a token, given z."""

    def __init__(self, config: L2Config, *, channels: int, z_width: int) -> None:
        super().__init__()
        self.linear = Linear(z_width, channels)

    def initialize(self, rng: torch.Generator) -> None:
        """Set every weight: Xavier uniform, bias 0, as the transformer's."""
        nn.init.xavier_uniform_(self.linear.weight, generator=rng)
        nn.init.zeros_(self.linear.bias)

    def draw(self, batch: int, num_tokens: int, rng: torch.Generator) -> Draws:
        """Return no draws: the loss is deterministic."""
        return ()

    def forward(
        self, z: Float[Tensor, "B M D"], x_0: Float[Tensor, "B M C"], draws: Draws
    ) -> Float[Tensor, "B M 1"]:
        """Return the squared error, a mean over channels."""
        return (self.linear(z).float() - x_0).square().mean(dim=2, keepdim=True)

    @torch.no_grad()
    def sample(
        self, condition: Condition, noise: Noise, sampler: SamplerSection
    ) -> Float[Tensor, "R C"]:
        """Return the prediction for each row; the noise is not used."""
        assert isinstance(sampler, L2Sampler)
        return condition.predict(lambda z: self.linear(z).float())
