"""The autoencoder with a codebook: VQ-VAE's (arXiv 1711.00937) in the layout of VQGAN and LDM.

Its continuous latents, before the codebook, are for the Diffusion Loss; its indices for the
cross-entropy (MAR, section 5.1). Parameter names are LDM's.
Shapes: B batch, H W an image, c channels of a latent, h w the latent grid.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from mar.tokenizers.codebook import DEAD_AFTER, Codebook, use_of
from mar.tokenizers.convolutional import Autoencoder
from mar.tokenizers.interface import Codes, Draws, Reconstruction, Tokenizer
from mar.tokenizers.kl import EncoderDecoderConfig


class VQConfig(EncoderDecoderConfig):
    """Section `tokenizer` of `params.yaml` for `kind: vq`."""

    kind: Literal["vq"]
    codebook_size: int = Field(gt=0, le=2**31, description="codes")
    commitment_weight: float = Field(
        ge=0, description="weight of the latents' pull towards their codes (VQ-VAE: 0.25)"
    )
    revive_dead: bool = Field(
        description=f"replace codes not used for {DEAD_AFTER} steps by latents of the batch"
    )


class VQ(Autoencoder):
    """An autoencoder whose decoder sees, for each latent, the nearest code of a codebook."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__(config.layout, config.latent_channels)
        self._config = config
        self.quantize = Codebook(config.codebook_size, config.latent_channels)

    @property
    def config(self) -> VQConfig:
        """Its section of `params.yaml`."""
        return self._config

    def without_decay(self) -> Iterable[nn.Parameter]:
        """Return the codes: decay would draw them from the latents that they stand for."""
        return self.quantize.parameters()

    def initialize(self, rng: torch.Generator) -> None:
        """Set every weight: layers as `Autoencoder`, codes as `Codebook` says."""
        super().initialize(rng)
        self.quantize.initialize(rng)

    def quantise(self, latents: Float[Tensor, "B c h w"]) -> Int[Tensor, "B h w"]:
        """Return the index of the nearest code for each latent."""
        return self.quantize.quantise(latents)

    def embed(self, indices: Int[Tensor, "B h w"]) -> Float[Tensor, "B c h w"]:
        """Return the codes."""
        return self.quantize.embed(indices)

    def decode(self, latents: Float[Tensor, "B c h w"]) -> Float[Tensor, "B 3 H W"]:
        """Return images, about in [-1, 1], of the codes nearest to the latents."""
        return self.decode_indices(self.quantise(latents))

    def decode_indices(self, indices: Int[Tensor, "B h w"]) -> Float[Tensor, "B 3 H W"]:
        """Return images, about in [-1, 1], of codes."""
        return super().decode(self.embed(indices))

    def draw(self, batch: int, grid: Sequence[int], rng: torch.Generator, *, step: int) -> Draws:
        """Draw nothing."""
        return ()

    def forward(self, images: Float[Tensor, "B 3 H W"], draws: Draws) -> Reconstruction:
        """Encode, quantise and decode; the gradient passes the codebook straight through.

        The second and third term of Equation 3 of VQ-VAE. VQGAN adds means over values to a mean
        over values; here the reconstruction is a sum over an image, so they are multiplied by its
        values.
        """
        latents = self.encode(images).float()
        indices = self.quantise(latents)
        codes = self.embed(indices)
        values = images[0].numel()
        terms = {
            "codebook": values * (codes - latents.detach()).square().mean(),
            "commitment": self.config.commitment_weight
            * (values * (codes.detach() - latents).square().mean()),
        }
        decoded = super().decode(latents + (codes - latents).detach())
        return Reconstruction(decoded, terms, Codes(latents.detach(), indices))

    def after_step(
        self, average: Tokenizer, codes: Sequence[Codes], rng: torch.Generator
    ) -> dict[str, Float[Tensor, ""]]:
        """Revive dead codes, in the average too, and return how the batch used the codebook."""
        assert isinstance(average, VQ)
        indices = torch.cat([part.indices.flatten() for part in codes])
        counts = indices.bincount(minlength=self.config.codebook_size)
        self.quantize.count(counts)
        if self.config.revive_dead:
            latents = torch.cat([part.latents for part in codes])
            revived = self.quantize.revive(latents, rng)
            # An average of where a code was dead and where it is now would be neither.
            average.quantize.take(self.quantize, revived)
        return use_of(counts)
