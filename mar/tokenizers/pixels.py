"""Pixels as latents: the tokenizer that changes nothing (MAR at 64 px groups them 4 x 4).

Shapes: B batch, H W an image.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mar.tokenizers.interface import ContinuousSection, Draws, Reconstruction, Tokenizer


class PixelsConfig(ContinuousSection):
    """Section `tokenizer` of `params.yaml` for `kind: pixels`."""

    has_weights: ClassVar[bool] = False

    kind: Literal["pixels"]

    @property
    def latent_channels(self) -> int:
        """Return the channels of a latent: red, green, blue."""
        return 3

    @property
    def stride(self) -> int:
        """Return how many pixels a latent is wide."""
        return 1


class Pixels(Tokenizer):
    """The identity; it has no weights, only a device."""

    def __init__(self, config: PixelsConfig) -> None:
        super().__init__()
        self._config = config
        self.register_buffer("place", torch.empty(0), persistent=False)

    @property
    def config(self) -> PixelsConfig:
        """Its section of `params.yaml`."""
        return self._config

    def initialize(self, rng: torch.Generator) -> None:
        """Set nothing."""

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """Return the images."""
        return images

    def decode(self, latents: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """Return the latents."""
        return latents

    @property
    def last_layer(self) -> None:
        """Return nothing: there are no weights."""
        return None

    def draw(self, batch: int, grid: Sequence[int], rng: torch.Generator, *, step: int) -> Draws:
        """Draw nothing."""
        return ()

    def forward(self, images: Float[Tensor, "B 3 H W"], draws: Draws) -> Reconstruction:
        """Return the images; there is nothing to minimise."""
        return Reconstruction(images, {}, None)
