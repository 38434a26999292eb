"""What every tokenizer offers, so that nothing else asks which kind it is.

Shapes: B batch, H W an image, c channels of a latent, h w the latent grid, X channels of moments
(c, or twice as many where latents have a variance).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mar.config import Config


Draws = tuple[Tensor, ...]  # the randomness of a training pass; each tensor begins with (B)


@runtime_checkable
class TokenizerSection(Protocol):
    """What a section `tokenizer` of any kind tells of itself; most of it is in `BaseSection`."""

    has_weights: ClassVar[bool]
    is_released: ClassVar[bool]
    has_released_layout: ClassVar[bool]

    @property
    def kind(self) -> str:
        """Which tokenizer; its key in `mar.tokenizers.registry.TOKENIZERS`."""
        ...

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        ...

    @property
    def codebook_size(self) -> int | None:
        """Codes that it has; none where latents are not quantised."""
        ...

    @property
    def stride(self) -> int:
        """How many pixels a latent is wide."""
        ...

    @property
    def phases(self) -> dict[str, int | None]:
        """Keys of the section, each with the optimiser step at which it changes the training."""
        ...

    def check_image_size(self, image_size: int) -> None:
        """Refuse square images that do not divide into latents."""
        ...

    def model_dump(self) -> dict[str, object]:
        """Return the section as it stands in the file."""
        ...


class BaseSection(Config, ABC):
    """What most kinds of tokenizers tell of themselves; a kind overrides what is otherwise.

    Attributes:
        has_weights: Whether there is anything to train.
        is_released: Whether its weights are those of others, in a file that the section names.
        has_released_layout: Whether the release (LTH14/mar) has a layout for it.
    """

    has_weights: ClassVar[bool] = True
    is_released: ClassVar[bool] = False
    has_released_layout: ClassVar[bool] = False

    @property
    @abstractmethod
    def stride(self) -> int:
        """How many pixels a latent is wide."""

    @property
    def phases(self) -> dict[str, int | None]:
        """Keys of the section, each with the optimiser step at which it changes the training."""
        return {}

    def check_image_size(self, image_size: int) -> None:
        """Refuse square images that do not divide into latents.

        Raises:
            ValueError: the message names the key, what was found and what was expected.
        """
        if image_size % self.stride:
            raise ValueError(
                f"data.image_size: {image_size} pixels do not divide into latents of "
                f"{self.stride} pixels"
            )


class ContinuousSection(BaseSection):
    """A kind whose latents are not quantised."""

    @property
    def codebook_size(self) -> None:
        """There are no codes."""
        return None


@dataclass(frozen=True)
class Codes:
    """What a codebook made of some images: latents, detached, and the code nearest to each."""

    latents: Float[Tensor, "B c h w"]
    indices: Int[Tensor, "B h w"]


@dataclass(frozen=True)
class Reconstruction:
    """A forward pass in training.

    Attributes:
        images: The decoded images; any comparison with the originals can be minimised.
        terms: What the tokenizer itself minimises besides, weighted, in units of an image's sum.
        codes: What `after_step` is to know, where there is a codebook.
    """

    images: Float[Tensor, "B 3 H W"]
    terms: dict[str, Float[Tensor, ""]]
    codes: Codes | None


class Tokenizer(nn.Module, ABC):
    """From images to latents and back."""

    @property
    @abstractmethod
    def config(self) -> TokenizerSection:
        """Its section of `params.yaml`."""

    @property
    def stride(self) -> int:
        """How many pixels a latent is wide."""
        return self.config.stride

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return self.config.latent_channels

    @property
    def codebook_size(self) -> int | None:
        """Codes that it has; none where latents are not quantised."""
        return self.config.codebook_size

    @property
    def device(self) -> torch.device:
        """Where its tensors live."""
        return next(chain(self.parameters(), self.buffers())).device

    @abstractmethod
    def initialize(self, rng: torch.Generator) -> None:
        """Set every weight, from the generator alone."""

    @abstractmethod
    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B X h w"]:
        """Return the moments of images in [-1, 1], as `Posterior.of` reads them.

        Raises:
            ValueError: the images do not divide into latents.
        """

    @abstractmethod
    def decode(self, latents: Float[Tensor, "B c h w"]) -> Float[Tensor, "B 3 H W"]:
        """Return images, about in [-1, 1]."""

    def quantise(self, latents: Float[Tensor, "B c h w"]) -> Int[Tensor, "B h w"] | None:
        """Return the index of the code for each latent, if there is a codebook."""
        return None

    def decode_indices(self, indices: Int[Tensor, "B h w"]) -> Float[Tensor, "B 3 H W"]:
        """Return images, about in [-1, 1], of codes.

        Raises:
            ValueError: there is no codebook.
        """
        raise ValueError("a tokenizer without a codebook cannot decode code indices")

    # In training

    @property
    @abstractmethod
    def last_layer(self) -> Tensor | None:
        """Return the weights that put out the image, where other losses are balanced with the
        reconstruction's (VQGAN, Equation 7); none where there are no weights.
        """

    def without_decay(self) -> Iterable[nn.Parameter]:
        """Return the weights that must not decay, besides biases and norms."""
        return ()

    def draw(self, batch: int, grid: Sequence[int], rng: torch.Generator, *, step: int) -> Draws:
        """Draw the randomness of a training pass; by default what a posterior's sample takes.

        Args:
            batch: Images in the batch, all of it, so that its parts do not depend on their size.
            grid: Height and width of the latents.
            rng: The step's.
            step: Optimiser steps taken before.
        """
        shape = (batch, self.latent_channels, *grid)
        return (torch.randn(shape, generator=rng, device=rng.device),)

    @abstractmethod
    def forward(self, images: Float[Tensor, "B 3 H W"], draws: Draws) -> Reconstruction:
        """Encode and decode images, with what `draw` gave for them."""

    def after_step(
        self, average: "Tokenizer", codes: Sequence[Codes], rng: torch.Generator
    ) -> dict[str, Float[Tensor, ""]]:
        """Do what follows an optimiser step; return numbers for the curves, none minimised.

        Args:
            average: Its running average, of the same kind.
            codes: Those of all parts of the batch.
            rng: The step's.
        """
        return {}
