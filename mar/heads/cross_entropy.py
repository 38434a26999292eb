"""The cross-entropy head: a token is an index into the codebook of a VQ tokenizer (MAR, 3.1).

Shapes: B batch, M tokens with a loss, R rows (tokens, of any images), D width of z, K codes.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from mar import precision
from mar.config import Config
from mar.heads.base import Condition, Drawn, Draws, Head, Noise, SamplerSection
from mar.linear import Linear


ROWS = 1024  # distributions in memory at a time: 128 MiB for the 16,384 codes of VQ-16


class CrossEntropyConfig(Config):
    """Section `generator.head` for `kind: cross_entropy`."""

    kind: Literal["cross_entropy"]

    @property
    def denoiser_width(self) -> None:
        """Return None: there is no denoiser."""


class CrossEntropySampler(Config):
    """Section `sample.head` for `kind: cross_entropy`."""

    kind: Literal["cross_entropy"]
    temperature: float = Field(gt=0, description="the logits are divided by it")

    @property
    def num_noises(self) -> int:
        """Return 0: a token takes the initial noise alone."""
        return 0

    def at_step(self, step: int, num_generation_steps: int) -> "CrossEntropySampler":
        """Return itself: all generation steps are alike."""
        return self


class CrossEntropy(Head):
    """Model p(x | z) = softmax(W z) over the codes; a token has one channel, its index."""

    is_discrete = True
    has_probabilities = True

    def __init__(self, config: CrossEntropyConfig, *, channels: int, z_width: int) -> None:
        """Make the classifier; `channels` is the number of codes."""
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
        self, z: Float[Tensor, "B M D"], x_0: Int[Tensor, "B M 1"], draws: Draws
    ) -> Float[Tensor, "B M 1"]:
        """Return the cross-entropy in nats."""
        logits = self.linear(z).float().movedim(2, 1)  # (B, K, M)
        return functional.cross_entropy(logits, x_0.squeeze(2), reduction="none")[:, :, None]

    @torch.no_grad()
    def sample(
        self, condition: Condition, noise: Noise, sampler: SamplerSection
    ) -> Int[Tensor, "R 1"]:
        """Sample a code for each row."""
        return self.sample_with_probability(condition, noise, sampler).tokens

    @torch.no_grad()
    def sample_with_probability(
        self, condition: Condition, noise: Noise, sampler: SamplerSection
    ) -> Drawn:
        """Sample a code for each row, by inverting the cumulative distribution.

        Guidance combines the logits. Rows are processed in chunks, as the distributions of all of
        them together could fill a GPU.
        """
        parts: list[tuple[Tensor, Tensor]] = []
        for start in range(0, len(condition.z), ROWS):
            rows = slice(start, start + ROWS)
            probabilities = self.probabilities(condition[rows], sampler)  # (R, K)
            codes = invert_cdf(probabilities, noise.initial[rows])
            parts.append((codes, probabilities.gather(1, codes)))
        codes, chances = zip(*parts, strict=True)
        return Drawn(torch.cat(codes), torch.cat(chances))

    def probabilities(self, condition: Condition, sampler: SamplerSection) -> Float[Tensor, "R K"]:
        """Return the distribution that `sample` draws from, in float64 where the device has it."""
        assert isinstance(sampler, CrossEntropySampler)
        wide = precision.widest_float(condition.z.device)
        logits = condition.predict(lambda z: self.linear(z).to(wide))
        return (logits / sampler.temperature).softmax(dim=1)


def invert_cdf(
    probabilities: Float[Tensor, "R K"], normal: Float[Tensor, "R 1"]
) -> Int[Tensor, "R 1"]:
    """Return the first code whose cumulative probability exceeds the normal CDF of a draw."""
    uniform = 0.5 * (1 + torch.erf(normal.to(probabilities.dtype) / math.sqrt(2)))  # (R, 1)
    passed = probabilities.cumsum(dim=1) > uniform  # (R, K)
    # Rounding may leave even the last sum below the uniform number.
    passed[:, -1] = True
    return passed.int().argmax(dim=1, keepdim=True)
