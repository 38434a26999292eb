"""What every head is: a model of one token's distribution, given z.

Shapes: B batch, M tokens with a loss, R rows (tokens, of any images), C channels of a token, D
width of z, A independent draws of a token's loss, S sampling steps.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn


Draws = tuple[Tensor, ...]  # the randomness of the loss of a batch; each tensor begins with (B, M)


@runtime_checkable
class HeadSection(Protocol):
    """Section `generator.head` of `params.yaml`, whatever the head."""

    @property
    def kind(self) -> str:
        """Which head; its key in `mar.heads.registry.HEADS`."""
        ...

    @property
    def denoiser_width(self) -> int | None:
        """Width of the network that models a token's values; none where there is no such."""
        ...


@runtime_checkable
class SamplerSection(Protocol):
    """Section `sample.head` of `params.yaml`, whatever the head."""

    @property
    def kind(self) -> str:
        """Which head; its key in `mar.heads.registry.HEADS`."""
        ...

    @property
    def num_noises(self) -> int:
        """How many normal draws a token takes after the first."""
        ...


class Noise(NamedTuple):
    """The randomness of drawing rows: normal, whatever a head makes of it."""

    initial: Float[Tensor, "R C"]
    steps: Float[Tensor, "S R C"]


class Drawn(NamedTuple):
    """Tokens of rows, and the probability of each."""

    tokens: Shaped[Tensor, "R C"]
    probability: Float[Tensor, "R 1"]


class Head(nn.Module, ABC):
    """A head; the transformer knows nothing else of it.

    A new one is a file with a subclass and its two sections, and a line in `mar.heads.registry`.

    Attributes:
        is_discrete: Whether a token is an index into a codebook.
        has_probabilities: Whether it can `sample_with_probability`.
    """

    is_discrete: ClassVar[bool] = False
    has_probabilities: ClassVar[bool] = False

    @abstractmethod
    def initialize(self, rng: torch.Generator) -> None:
        """Set every weight."""

    @abstractmethod
    def draw(self, batch: int, num_tokens: int, rng: torch.Generator) -> Draws:
        """Draw the randomness of the loss of (B, M) tokens, and of those alone."""

    @abstractmethod
    def forward(
        self, z: Float[Tensor, "B M D"], x_0: Shaped[Tensor, "B M C"], draws: Draws
    ) -> Float[Tensor, "B M A"]:
        """Return the loss of each token and draw; their mean is what is minimised."""

    @abstractmethod
    def sample(
        self,
        z: Float[Tensor, "R D"],
        noise: Noise,
        sampler: SamplerSection,
        *,
        z_null: Float[Tensor, "R D"] | None = None,
        guidance_scale: float = 1.0,
    ) -> Shaped[Tensor, "R C"]:
        """Draw a token for each row.

        Args:
            z: The condition of each row.
            noise: Its randomness, with as many steps as `num_noises` says.
            sampler: Section `sample.head`, of this head's kind.
            z_null: The condition without class of each row, for guidance.
            guidance_scale: How far from the prediction without class towards that with it, and
                beyond.
        """

    def sample_with_probability(
        self,
        z: Float[Tensor, "R D"],
        noise: Noise,
        sampler: SamplerSection,
        *,
        z_null: Float[Tensor, "R D"] | None = None,
        guidance_scale: float = 1.0,
    ) -> Drawn:
        """Draw a token for each row as `sample` does, and tell how probable it was.

        Only where tokens have probabilities, which continuous ones have not.
        """
        raise NotImplementedError


def guide(
    null: Float[Tensor, "R C"], given: Float[Tensor, "R C"], scale: float
) -> Float[Tensor, "R C"]:
    """Return null + scale * (given - null) (MAR, section 3.2)."""
    return null + scale * (given - null)
