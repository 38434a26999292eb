"""What every head is: a model of one token's distribution, given z.

Shapes: B batch, M tokens with a loss, R rows (tokens, of any images), C channels of a token, D
width of z, A independent draws of a token's loss, S sampling steps, G rows, or twice as many with
guidance.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn


Draws = tuple[Tensor, ...]  # random numbers of a batch's loss; the first dimensions are (B, M)


@runtime_checkable
class HeadSection(Protocol):
    """Section `generator.head` of `params.yaml`, whatever the head."""

    @property
    def kind(self) -> str:
        """Which head; its key in `mar.heads.registry.HEADS`."""
        ...

    @property
    def denoiser_width(self) -> int | None:
        """Width of the denoiser; None for a head without one."""
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
        """Standard normal draws that sampling a token takes after the initial one, at most."""
        ...

    def at_step(self, step: int, num_generation_steps: int) -> "SamplerSection":
        """Return the settings of one generation step, counted from 0, with no more `num_noises`."""
        ...


def guide(
    null: Float[Tensor, "R C"], given: Float[Tensor, "R C"], scale: float
) -> Float[Tensor, "R C"]:
    """Return null + scale * (given - null) (MAR, section 3.2)."""
    return null + scale * (given - null)


@dataclass(frozen=True)
class Condition:
    """What tokens are sampled from, in rows: z and, for classifier-free guidance, z without class.

    Attributes:
        z: From the transformer, given the class.
        z_null: From the transformer, given the null class; None for no guidance.
        scale: Guidance scale: 0 predicts without class, 1 with it, more goes beyond.
    """

    z: Float[Tensor, "R D"]
    z_null: Float[Tensor, "R D"] | None = None
    scale: float = 1.0

    def __getitem__(self, rows: slice) -> "Condition":
        """Return the condition of some of the rows."""
        z_null = None if self.z_null is None else self.z_null[rows]
        return Condition(self.z[rows], z_null, self.scale)

    def stacked(self) -> Float[Tensor, "G D"]:
        """Return z and below it, with guidance, z_null: the rows of one pass of a network."""
        return self.z if self.z_null is None else torch.cat([self.z, self.z_null])

    def predict(self, network: Callable[[Tensor], Tensor]) -> Float[Tensor, "R C"]:
        """Return the guided prediction of a network that needs nothing but z."""
        given = network(self.z)
        if self.z_null is None:
            return given
        return guide(network(self.z_null), given, self.scale)


class Noise(NamedTuple):
    """Standard normal noise that a head turns into tokens."""

    initial: Float[Tensor, "R C"]
    steps: Float[Tensor, "S R C"]


class Drawn(NamedTuple):
    """Sampled tokens, and the probability of each."""

    tokens: Shaped[Tensor, "R C"]
    probability: Float[Tensor, "R 1"]


class Head(nn.Module, ABC):
    """The interface of every head; nothing outside `mar.heads` asks which head it is.

    A new head is a file with a subclass and its two sections, and a line in `mar.heads.registry`.

    Attributes:
        is_discrete: Whether a token is an index into a codebook.
        has_probabilities: Whether it can `sample_with_probability`.
        has_released_layout: Whether the release (LTH14/mar) has a layout for it.
    """

    is_discrete: ClassVar[bool] = False
    has_probabilities: ClassVar[bool] = False
    has_released_layout: ClassVar[bool] = False

    @abstractmethod
    def initialize(self, rng: torch.Generator) -> None:
        """Set every weight."""

    @abstractmethod
    def draw(self, batch: int, num_tokens: int, rng: torch.Generator) -> Draws:
        """Draw the random numbers that the loss of (B, M) tokens needs."""

    @abstractmethod
    def forward(
        self, z: Float[Tensor, "B M D"], x_0: Shaped[Tensor, "B M C"], draws: Draws
    ) -> Float[Tensor, "B M A"]:
        """Return the loss of each token and draw; training minimises their mean."""

    @abstractmethod
    def sample(
        self, condition: Condition, noise: Noise, sampler: SamplerSection
    ) -> Shaped[Tensor, "R C"]:
        """Sample a token for each row.

        Args:
            condition: z of each row, and the guidance.
            noise: The noise of each row, with as many steps as `num_noises` says.
            sampler: Section `sample.head`, of this head's kind.
        """

    def sample_with_probability(
        self, condition: Condition, noise: Noise, sampler: SamplerSection
    ) -> Drawn:
        """Sample a token for each row as `sample` does, and return its probability too.

        Only heads of discrete tokens can: continuous ones have densities.
        """
        raise NotImplementedError
