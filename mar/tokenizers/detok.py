"""l-DeTok: a transformer autoencoder that learns to decode corrupted latents (arXiv 2507.15856).

In training, patches are dropped before the encoder, and noise is mixed into the latents of the
others; so they come to hold what can be told from a part of them, which is what a generator is
asked for. It reconstructs no better for that; what is generated with it does (MAR-B: FID 2.31 to
1.55). Layers, initial weights and corruption are those of the original code (Jiawei-Yang/DeTok).

Shapes: B batch, H W an image, h w the latent grid, N its latents, V those of patches that were not
dropped, c channels of a latent, X of its moments, D width, R angles of a head, twice.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Discriminator, Field, Tag, model_validator
from timm.models.eva import EvaBlock
from torch import Tensor, nn

from mar.config import Config, name_or_fields
from mar.latents.posterior import Posterior
from mar.tokenizers.interface import ContinuousSection, Draws, Reconstruction, Tokenizer


class StackSize(Config):
    """The sizes of a stack of transformer blocks."""

    width: int = Field(gt=0, le=65_536, description="width of the blocks")
    blocks: int = Field(gt=0, le=1_000, description="transformer blocks")
    heads: int = Field(
        gt=0, le=65_536, description="attention heads; each has a multiple of 4 channels"
    )

    @model_validator(mode="after")
    def _check(self) -> "StackSize":
        if self.width % (4 * self.heads):
            raise ValueError(
                f"width: {self.width} channels do not make {self.heads} heads of a multiple of 4"
            )
        return self


NamedOrCustom = Annotated[
    Annotated[Literal["small", "base", "large"], Tag("name")] | Annotated[StackSize, Tag("fields")],
    Discriminator(name_or_fields),
]


class DeTokConfig(ContinuousSection):
    """Section `tokenizer` of `params.yaml` for `kind: detok`."""

    kind: Literal["detok"]
    latent_channels: int = Field(gt=0, le=65_536, description="channels of a latent")
    patch_size: int = Field(
        gt=0, le=16_384, description="side of the patch that a latent stands for, pixels"
    )
    grid: int = Field(
        gt=0,
        le=16_384,
        description="latents in a row and in a column, for which positions are learned",
    )
    encoder: NamedOrCustom = Field(description="a size by name, or its three numbers")
    decoder: NamedOrCustom = Field(description="a size by name, or its three numbers")
    noise_std: float = Field(
        ge=0, description="std of the noise mixed into the latents in training (paper: gamma, 3)"
    )
    drop_ratio_max: float = Field(
        ge=0, lt=1, description="largest share of the patches dropped in training (paper: 0.7)"
    )
    kl_weight: float = Field(
        ge=0, description="weight of the KL divergence, beside a sum over the image's values"
    )
    decoder_from_step: int | None = Field(
        ge=0,
        description="optimiser steps after which the encoder stays as it is and the decoder is "
        "tuned on latents that are not corrupted; null: never",
    )

    @property
    def stride(self) -> int:
        """Return how many pixels a latent is wide."""
        return self.patch_size

    @property
    def phases(self) -> dict[str, int | None]:
        """Return when the decoder begins to be tuned alone."""
        return {"decoder_from_step": self.decoder_from_step}

    def check_image_size(self, image_size: int) -> None:
        """Refuse square images that are not as many latents as there are positions.

        Raises:
            ValueError: the message names the keys, what was found and what was expected.
        """
        if image_size != self.grid * self.stride:
            raise ValueError(
                f"data.image_size: {image_size} pixels are not the {self.grid} latents of "
                f"{self.stride} pixels of tokenizer.grid and tokenizer.patch_size"
            )


RMSNorm = partial(nn.RMSNorm, eps=1e-6)


def rotary_embedding(grid: int, head_width: int) -> Float[Tensor, "N R"]:
    """Return for each position sines, then cosines, of the angles that turn a head's channels.

    The first half of the channels turns with the row, the other with the column, from 7 times over
    the image down to 0.0007 times. Of two channels that turn together, the frequencies are
    neighbours and not the same: an oddity of the original, kept so that weights mean the same.
    """
    frequencies = 7.0 * 1e4 ** torch.linspace(0, -1, head_width // 4)
    place = torch.linspace(0, 1, grid)
    turns = place[:, None] * frequencies.repeat(2)  # (grid, half of the channels)
    rows, columns = turns.repeat_interleave(grid, dim=0), turns.repeat(grid, 1)
    angles = 2 * math.pi * torch.cat([rows, columns], dim=1)  # (N, channels)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def corrupt(
    latents: Float[Tensor, "B c 1 V"], noise: Float[Tensor, "B c 1 V"], t: Float[Tensor, " B"]
) -> Float[Tensor, "B c 1 V"]:
    """Return (1 - t) latents + t noise."""
    return torch.lerp(latents, noise, t[:, None, None, None])


class Stack(nn.Module):
    """Transformer blocks between two norms; their tokens are told where they lie."""

    rotary: Float[Tensor, "N R"]

    def __init__(self, size: StackSize, grid: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.empty(1, grid**2, size.width))
        self.norm_in = RMSNorm(size.width)
        self.blocks = nn.ModuleList(
            EvaBlock(
                size.width,
                size.heads,
                mlp_ratio=8 / 3,  # of a gated MLP: as many weights as 4 of a plain one
                swiglu_mlp=True,
                num_prefix_tokens=0,
                attn_type="rope",
                norm_layer=RMSNorm,
            )
            for _ in range(size.blocks)
        )
        self.norm_out = RMSNorm(size.width)
        rotary = rotary_embedding(grid, size.width // size.heads)
        self.register_buffer("rotary", rotary, persistent=False)

    def forward(
        self, x: Float[Tensor, "B V D"], kept: Int[Tensor, "B V"] | None
    ) -> Float[Tensor, "B V D"]:
        """Apply the blocks to the tokens at some positions, or at all."""
        position, rotary = self.position, self.rotary[None]
        if kept is not None:
            position = torch.take_along_dim(position, kept[:, :, None], dim=1)  # (B, V, D)
            rotary = self.rotary[kept]  # (B, V, R)
        x = self.norm_in(x + position)
        for block in self.blocks:
            x = block(x, rope=rotary[:, None])
        return self.norm_out(x)


class Encoder(nn.Module):
    """From images to the moments of latents."""

    def __init__(self, config: DeTokConfig) -> None:
        super().__init__()
        size = stack_size(config.encoder)
        self.side = config.grid * config.patch_size
        self.patch_embed = nn.Conv2d(3, size.width, config.patch_size, stride=config.patch_size)
        self.stack = Stack(size, config.grid)
        self.latent_head = nn.Linear(size.width, 2 * config.latent_channels)

    def forward(
        self, images: Float[Tensor, "B 3 H W"], kept: Int[Tensor, "B V"] | None
    ) -> Float[Tensor, "B V X"]:
        """Encode the patches at some positions, or at all; the others are not seen.

        Raises:
            ValueError: the images are not as many patches as there are positions.
        """
        if images.shape[2:] != (self.side, self.side):
            height, width = images.shape[2:]
            raise ValueError(f"{height} x {width} pixels, expected {self.side} x {self.side}")
        x = self.patch_embed(images).flatten(2).transpose(1, 2)  # (B, N, D)
        if kept is not None:
            x = torch.take_along_dim(x, kept[:, :, None], dim=1)  # (B, V, D)
        return self.latent_head(self.stack(x, kept))


class Decoder(nn.Module):
    """From latents to images, with a mask token where there is none."""

    def __init__(self, config: DeTokConfig) -> None:
        super().__init__()
        size = stack_size(config.decoder)
        self.patch_size, self.grid = config.patch_size, config.grid
        self.decoder_embed = nn.Linear(config.latent_channels, size.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, size.width))
        self.stack = Stack(size, config.grid)
        self.pixels = nn.Linear(size.width, 3 * config.patch_size**2)
        self.conv_out = nn.Conv2d(3, 3, 3, padding=1)

    def forward(
        self, latents: Float[Tensor, "B V c"], kept: Int[Tensor, "B V"] | None
    ) -> Float[Tensor, "B 3 H W"]:
        """Decode the latents at some positions, or at all."""
        x = self.decoder_embed(latents)  # (B, V, D)
        batch, _, width = x.shape
        if kept is not None:
            everywhere = self.mask_token.to(x.dtype).expand(batch, self.grid**2, width)
            x = everywhere.scatter(1, kept[:, :, None].expand(-1, -1, width), x)  # (B, N, D)
        patches = self.pixels(self.stack(x, None))  # (B, N, p p 3)
        side, patch = self.grid, self.patch_size
        patches = patches.reshape(batch, side, side, patch, patch, 3)
        images = patches.permute(0, 5, 1, 3, 2, 4).reshape(batch, 3, side * patch, side * patch)
        return self.conv_out(images)


class DeTok(Tokenizer):
    """Encoder and decoder; what is corrupted between them in training is whole in use."""

    def __init__(self, config: DeTokConfig) -> None:
        super().__init__()
        self._config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    @property
    def config(self) -> DeTokConfig:
        """Its section of `params.yaml`."""
        return self._config

    def initialize(self, rng: torch.Generator) -> None:
        """Set every weight.

        | what                    | weight               | bias |
        |-------------------------|----------------------|------|
        | Linear, Conv2d          | N(0, 0.02)           | 0    |
        | positions, mask token   | N(0, 1 / sqrt(width))|      |
        | RMSNorm                 | 1                    |      |
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02, generator=rng)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.RMSNorm):
                nn.init.ones_(module.weight)
        for parameter in (
            self.encoder.stack.position,
            self.decoder.stack.position,
            self.decoder.mask_token,
        ):
            nn.init.normal_(parameter, std=parameter.shape[2] ** -0.5, generator=rng)

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B X h w"]:
        """Return the moments of images in [-1, 1]; no patch is dropped.

        Raises:
            ValueError: the images are not as many patches as there are positions.
        """
        moments = self.encoder(images, None)  # (B, N, X)
        return moments.transpose(1, 2).unflatten(2, (self.config.grid, self.config.grid))

    def decode(self, latents: Float[Tensor, "B c h w"]) -> Float[Tensor, "B 3 H W"]:
        """Return images, about in [-1, 1]."""
        return self.decoder(latents.flatten(2).transpose(1, 2), None)

    # In training

    @property
    def last_layer(self) -> Tensor:
        """Return the weights that put out the image."""
        return self.decoder.conv_out.weight

    def draw(self, batch: int, grid: Sequence[int], rng: torch.Generator, *, step: int) -> Draws:
        """Draw the noise of the posterior's sample, and until the decoder is tuned what corrupts.

        That is the positions of the patches that are kept (B, V), the noise, and how much of it
        each image gets (B). The share of patches dropped is one for the batch, max(0, U(-0.1,
        `drop_ratio_max`)). All noise is (B, c, 1, V): the latents kept, in a row.
        """
        count, channels, device = math.prod(grid), self.latent_channels, rng.device
        if self.config.decoder_from_step is not None and step >= self.config.decoder_from_step:
            return (torch.randn(batch, channels, 1, count, generator=rng, device=device),)
        uniform = float(torch.rand((), generator=rng, device=device))
        ratio = max(0.0, uniform * (self.config.drop_ratio_max + 0.1) - 0.1)
        order = torch.rand(batch, count, generator=rng, device=device).argsort(dim=1)
        kept = order[:, : math.ceil(count * (1 - ratio))].sort(dim=1).values  # (B, V)
        shape = (2, batch, channels, 1, kept.shape[1])
        eps, noise = torch.randn(shape, generator=rng, device=device)
        t = torch.rand(batch, generator=rng, device=device)
        return eps, kept, self.config.noise_std * noise, t

    def forward(self, images: Float[Tensor, "B 3 H W"], draws: Draws) -> Reconstruction:
        """Encode, sample the posterior, corrupt the latents, and decode.

        With nothing drawn that corrupts, the decoder alone is trained. The divergence is a sum over
        an image's latents, those that are there.
        """
        eps, *corruption = draws
        kept = corruption[0] if corruption else None
        with torch.set_grad_enabled(bool(corruption) and torch.is_grad_enabled()):
            moments = self.encoder(images, kept)  # (B, V, X)
            posterior = Posterior.of(moments.transpose(1, 2)[:, :, None], self.latent_channels)
            latents = posterior.sample(eps)  # (B, c, 1, V)
            divergence = self.config.kl_weight * posterior.kl().mean()
        if corruption:
            _, noise, t = corruption
            latents = corrupt(latents, noise, t)
        decoded = self.decoder(latents.squeeze(2).transpose(1, 2), kept)
        return Reconstruction(decoded, {"kl": divergence}, None)


def stack_size(size: NamedOrCustom) -> StackSize:
    """Return the sizes behind a name."""
    return SIZES[size] if isinstance(size, str) else size


SIZES = {  # the original's; its "small" is not that of ViT
    "small": StackSize(width=512, blocks=8, heads=8),
    "base": StackSize(width=768, blocks=12, heads=12),
    "large": StackSize(width=1024, blocks=24, heads=16),
}
