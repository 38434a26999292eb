"""The layers of latent diffusion's autoencoders (LDM, arXiv 2112.10752), at any stride and width.

Shapes: B batch, C channels of a feature map, c channels of a latent, H W an image or a feature map,
h w the latent grid, X channels of moments (for `GaussianAutoencoder`, twice the latent channels).
Parameter names are LDM's, so released KL-16 weights load as they are.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, scaled_dot_product_attention, silu

from mar.latents.posterior import Posterior
from mar.tokenizers.interface import BaseSection, Draws, Reconstruction, Tokenizer


GROUPS = 32  # of group norm, or as many of them as divide the channels (LDM)


@dataclass(frozen=True)
class Layout:
    """Which layers an encoder and its decoder have; LDM's own, or those of another family.

    Attributes:
        latent_channels: Channels of a latent.
        first_channels: What the first convolution makes of an image.
        level_channels: Channels of each level; each but the last one halves the resolution.
        num_res_blocks: Residual blocks of a level (one more in the decoder).
        encoder_attention: Levels of the encoder with attention after each of their blocks.
        decoder_attention: The same of the decoder.
        middle_attention: Attention between the two blocks at the lowest resolution.
        quant_conv: A 1x1 convolution behind the encoder.
        post_quant_conv: A 1x1 convolution before the decoder.
        norm_groups: Groups of each group norm, where they divide the channels.
    """

    latent_channels: int
    first_channels: int
    level_channels: Sequence[int]
    num_res_blocks: int
    encoder_attention: Collection[int] = ()
    decoder_attention: Collection[int] = ()
    middle_attention: bool = True
    quant_conv: bool = True
    post_quant_conv: bool = True
    norm_groups: int = GROUPS


class SizesConfig(BaseSection):
    """The sizes of an encoder and its decoder, whatever lies between them."""

    latent_channels: int = Field(gt=0, le=65_536, description="channels of a latent")
    base_channels: int = Field(gt=0, le=65_536, description="channels at full resolution")
    channel_multipliers: list[Annotated[int, Field(gt=0, le=1_000)]] = Field(
        min_length=1,
        max_length=12,
        description="channels of each level, in base channels; the stride is 2^(levels - 1)",
    )
    num_res_blocks: int = Field(
        gt=0, le=1_000, description="residual blocks of a level (one more in the decoder)"
    )

    @property
    def stride(self) -> int:
        """Return how many pixels a latent is wide."""
        return int(2 ** (len(self.channel_multipliers) - 1))

    def make_layout(
        self, *, encoder_attention: Collection[int], decoder_attention: Collection[int]
    ) -> Layout:
        """Return the layers; which levels have attention is the concern of the kind."""
        return Layout(
            latent_channels=self.latent_channels,
            first_channels=self.base_channels,
            level_channels=[self.base_channels * factor for factor in self.channel_multipliers],
            num_res_blocks=self.num_res_blocks,
            encoder_attention=encoder_attention,
            decoder_attention=decoder_attention,
        )


class ResidualBlock(nn.Module):
    """x + two convolutions, each behind group norm and swish."""

    def __init__(self, in_channels: int, out_channels: int, groups: int = GROUPS) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels, groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)
        else:
            self.nin_shortcut = nn.Identity()

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H W"]:
        """Apply the block."""
        y = self.conv1(silu(self.norm1(x)))
        y = self.conv2(silu(self.norm2(y)))
        return self.nin_shortcut(x) + y


class Attention(nn.Module):
    """x + single-head attention over all positions."""

    def __init__(self, channels: int, groups: int = GROUPS) -> None:
        super().__init__()
        self.norm = _norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Apply the block."""
        y = self.norm(x)
        q, k, v = (f(y).flatten(2).transpose(1, 2) for f in (self.q, self.k, self.v))  # (B, H W, C)
        y = scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(y)


class Downsample(nn.Module):
    """Halve the resolution by a convolution, with one row and column of zeros right and below."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H2 W2"]:
        """Apply the layer."""
        return self.conv(pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the resolution by repeating pixels, then convolve."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H2 W2"]:
        """Apply the layer."""
        return self.conv(interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The layers of one resolution; who makes it adds the layer that leads to the next one."""

    downsample: nn.Module  # in an encoder
    upsample: nn.Module  # in a decoder

    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_blocks: int,
        *,
        attention: bool = False,
        groups: int = GROUPS,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [channels] * (num_blocks - 1)
        self.block = nn.ModuleList(ResidualBlock(width, channels, groups) for width in widths)
        self.attn = nn.ModuleList(Attention(channels, groups) for _ in widths if attention)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H W"]:
        """Apply the blocks, each followed by its attention, if there is one."""
        for index, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[index](x)
        return x


class Middle(nn.Module):
    """Block, attention (if there is one), block at the lowest resolution."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        channels, groups = layout.level_channels[-1], layout.norm_groups
        self.block_1 = ResidualBlock(channels, channels, groups)
        self.attn_1 = Attention(channels, groups) if layout.middle_attention else nn.Identity()
        self.block_2 = ResidualBlock(channels, channels, groups)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Apply the three."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """From images to features of the latent grid."""

    def __init__(self, layout: Layout, out_channels: int) -> None:
        super().__init__()
        widths, first, groups = layout.level_channels, layout.first_channels, layout.norm_groups
        self.conv_in = nn.Conv2d(3, first, 3, padding=1)
        self.down = nn.ModuleList()
        for index, (before, width) in enumerate(zip([first, *widths], widths, strict=False)):
            last = index == len(widths) - 1
            attention = index in layout.encoder_attention
            level = Level(before, width, layout.num_res_blocks, attention=attention, groups=groups)
            level.downsample = nn.Identity() if last else Downsample(width)
            self.down.append(level)
        self.mid = Middle(layout)
        self.norm_out = _norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B X h w"]:
        """Encode images."""
        x = self.conv_in(x)
        for level in self.down:
            assert isinstance(level, Level)
            x = level.downsample(level(x))
        return self.conv_out(silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """From latents to images; a mirror of the encoder, with one more block at each level."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        widths, groups = layout.level_channels, layout.norm_groups
        self.conv_in = nn.Conv2d(layout.latent_channels, widths[-1], 3, padding=1)
        self.mid = Middle(layout)
        levels: list[Level] = []  # as LDM numbers them: 0 is full resolution, applied last
        for index, width in enumerate(widths):
            before = widths[min(index + 1, len(widths) - 1)]
            attention = index in layout.decoder_attention
            level = Level(
                before, width, layout.num_res_blocks + 1, attention=attention, groups=groups
            )
            level.upsample = nn.Identity() if index == 0 else Upsample(width)
            levels.append(level)
        self.up = nn.ModuleList(levels)
        self.norm_out = _norm(widths[0], groups)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Float[Tensor, "B c h w"]) -> Float[Tensor, "B 3 H W"]:
        """Decode latents."""
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            assert isinstance(level, Level)
            x = level.upsample(level(x))
        return self.conv_out(silu(self.norm_out(x)))


class Autoencoder(Tokenizer):
    """Encoder, decoder, and the 1x1 convolutions around the latent, if there are any."""

    def __init__(self, layout: Layout, moment_channels: int) -> None:
        super().__init__()
        channels = layout.latent_channels
        self.encoder = Encoder(layout, moment_channels)
        self.decoder = Decoder(layout)
        self.quant_conv: nn.Module = nn.Identity()
        self.post_quant_conv: nn.Module = nn.Identity()
        if layout.quant_conv:
            self.quant_conv = nn.Conv2d(moment_channels, moment_channels, 1)
        if layout.post_quant_conv:
            self.post_quant_conv = nn.Conv2d(channels, channels, 1)

    def initialize(self, rng: torch.Generator) -> None:
        """Set every weight as torch does by default (LDM), but from the generator alone.

        | what        | weight                        | bias                    |
        |-------------|-------------------------------|-------------------------|
        | Conv2d      | U(-1, 1) / sqrt(fan in)       | U(-1, 1) / sqrt(fan in) |
        | GroupNorm   | 1                             | 0                       |
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                bound = 1 / math.sqrt(module.weight[0].numel())
                nn.init.uniform_(module.weight, -bound, bound, generator=rng)
                assert module.bias is not None
                nn.init.uniform_(module.bias, -bound, bound, generator=rng)
            elif isinstance(module, nn.GroupNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)

    @property
    def last_layer(self) -> Tensor:
        """Return the weights that put out the image."""
        return self.decoder.conv_out.weight

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B X h w"]:
        """Return the moments of images in [-1, 1].

        Raises:
            ValueError: the images do not divide into latents.
        """
        height, width = images.shape[2:]
        if height % self.stride or width % self.stride:
            raise ValueError(
                f"{height} x {width} pixels do not divide into latents of {self.stride} pixels"
            )
        return self.quant_conv(self.encoder(images))

    def decode(self, latents: Float[Tensor, "B c h w"]) -> Float[Tensor, "B 3 H W"]:
        """Return images, about in [-1, 1]."""
        return self.decoder(self.post_quant_conv(latents))


class GaussianAutoencoder(Autoencoder):
    """An autoencoder of moments (means, then log variances), pulled towards a normal."""

    def __init__(self, layout: Layout, kl_weight: float) -> None:
        super().__init__(layout, 2 * layout.latent_channels)
        self._kl_weight = kl_weight

    def forward(self, images: Float[Tensor, "B 3 H W"], draws: Draws) -> Reconstruction:
        """Encode, sample the posterior and decode.

        As in LDM, the divergence is a sum over an image, so that `kl_weight` means what it means
        there.
        """
        (eps,) = draws  # (B, c, h, w)
        posterior = Posterior.of(self.encode(images), self.latent_channels)
        terms = {"kl": self._kl_weight * posterior.kl().mean()}
        return Reconstruction(self.decode(posterior.sample(eps)), terms, None)


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(groups, channels), channels, eps=1e-6)
