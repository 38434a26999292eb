"""The denoiser eps(x_t | t, z): a small MLP with adaptive layer norm (MAR, section 4.1).

Shapes: R rows (tokens), C channels of a token, O outputs, D width of z, W width of
the MLP, G rows, or twice as many with guidance.
"""

import math
from functools import partial
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Shaped
from pydantic import Discriminator, Field, Tag
from torch import Tensor, nn
from torch.nn import functional

from mar.activation_checkpointing import Checkpointed
from mar.config import Config, name_or_fields
from mar.heads.base import Condition
from mar.linear import Linear


class DenoiserSize(Config):
    """The two numbers behind a named size."""

    blocks: int = Field(gt=0, le=1_000, description="residual blocks of the denoiser")
    width: int = Field(gt=0, le=65_536, description="width of the denoiser")


NamedOrCustom = Annotated[
    Annotated[Literal["base", "large", "huge"], Tag("name")]
    | Annotated[DenoiserSize, Tag("fields")],
    Discriminator(name_or_fields),
]
FREQUENCIES = 128  # of the time embedding: 128 cosines, then 128 sines


def time_features(t: Shaped[Tensor, " R"]) -> Float[Tensor, "R F"]:
    """Return cos(t w_i), then sin(t w_i), with w_i = 10000^(-i/128)."""
    index = torch.arange(FREQUENCIES, device=t.device, dtype=torch.float32)
    angles = t[:, None].float() * torch.exp(-math.log(10000) * index / FREQUENCIES)  # (R, 128)
    return torch.cat([angles.cos(), angles.sin()], dim=1)  # (R, 256)


class ResidualBlock(nn.Module):
    """x + gate * MLP(LayerNorm(x) * (1 + scale) + shift); the condition gives all three.

    SiLU comes before each modulation. `Denoiser.denoise` applies it once for all blocks.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(Linear(width, width), nn.SiLU(), Linear(width, width))
        self.modulation = nn.Sequential(nn.SiLU(), Linear(width, 3 * width))

    def forward(self, x: Float[Tensor, "R W"], y: Float[Tensor, "R W"]) -> Float[Tensor, "R W"]:
        """Apply the block to x under the condition, of which y is the SiLU."""
        shift, scale, gate = self.modulation[1](y).chunk(3, dim=1)
        return x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)


class FinalLayer(nn.Module):
    """Modulated layer norm without weights of its own, and the projection to the outputs."""

    def __init__(self, width: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = Linear(width, out_channels)
        self.modulation = nn.Sequential(nn.SiLU(), Linear(width, 2 * width))

    def forward(self, x: Float[Tensor, "R W"], y: Float[Tensor, "R W"]) -> Float[Tensor, "R O"]:
        """Project x under the condition, of which y is the SiLU."""
        shift, scale = self.modulation[1](y).chunk(2, dim=1)
        return self.linear(self.norm(x) * (1 + scale) + shift)


def initialize_layers(network: nn.Module, rng: torch.Generator) -> None:
    """Set every weight of a network of residual blocks and a `final` layer.

    | what                            | weight         | bias |
    |---------------------------------|----------------|------|
    | Linear                          | Xavier uniform | 0    |
    | modulations and the last Linear | 0              | 0    |
    | LayerNorm                       | 1              | 0    |
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=rng)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    for name, parameter in network.named_parameters():
        if "modulation" in name or name.startswith("final"):
            nn.init.zeros_(parameter)


class Denoiser(Checkpointed):
    """The MLP; the head that uses it gives the O outputs their meaning."""

    def __init__(
        self, size: DenoiserSize, *, channels: int, out_channels: int, z_width: int
    ) -> None:
        super().__init__()
        width = size.width
        self.time_mlp = nn.Sequential(
            Linear(2 * FREQUENCIES, width), nn.SiLU(), Linear(width, width)
        )
        self.z_proj = Linear(z_width, width)
        self.input_proj = Linear(channels, width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(size.blocks))
        self.final = FinalLayer(width, out_channels)

    def initialize(self, rng: torch.Generator) -> None:
        """Set every weight: N(0, 0.02) in the time MLP, else as `initialize_layers`."""
        initialize_layers(self, rng)
        for layer in self.time_mlp:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02, generator=rng)

    def embed_time(self, t: Shaped[Tensor, " R"]) -> Float[Tensor, "R W"]:
        """Embed times, 0 (no noise) to 999 or 1000 (pure noise)."""
        return self.time_mlp(time_features(t))

    def embed_z(self, z: Float[Tensor, "*R D"]) -> Float[Tensor, "*R W"]:
        """Embed the transformer's condition."""
        return self.z_proj(z)

    def embed_condition(self, condition: Condition) -> Float[Tensor, "G W"]:
        """Embed z and below it, with guidance, z without class; in float32."""
        return self.embed_z(condition.stacked().float())

    def denoise(self, x_t: Float[Tensor, "R C"], y: Float[Tensor, "R W"]) -> Float[Tensor, "R O"]:
        """Return the outputs, given the sum y of the two embeddings."""
        x = self.input_proj(x_t)  # (R, W)
        y = functional.silu(y)
        for block in self.blocks:
            x = self.apply_block(partial(block, y=y), x)
        return self.final(x, y)  # (R, O)

    def forward(
        self, x_t: Float[Tensor, "R C"], t: Shaped[Tensor, " R"], z: Float[Tensor, "R D"]
    ) -> Float[Tensor, "R O"]:
        """Return the outputs of each row."""
        return self.denoise(x_t, self.embed_time(t) + self.embed_z(z))


def denoiser_size(size: str | DenoiserSize) -> DenoiserSize:
    """Return the numbers of a size."""
    return SIZES[size] if isinstance(size, str) else size


SIZES = {  # MAR, Table 4
    "base": DenoiserSize(blocks=6, width=1024),
    "large": DenoiserSize(blocks=8, width=1280),
    "huge": DenoiserSize(blocks=12, width=1536),
}
