"""The denoiser eps(x_t | t, z): a small MLP with adaptive layer norm (MAR, section 4.1).

Shapes: R rows (tokens), C channels of a token, D width of z, W width of the MLP.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


FREQUENCIES = 128  # of the time embedding: 128 cosines, then 128 sines


def time_features(t: Int[Tensor, " R"]) -> Float[Tensor, "R F"]:
    """Return cos(t w_i), then sin(t w_i), with w_i = 10000^(-i/128)."""
    index = torch.arange(FREQUENCIES, device=t.device, dtype=torch.float32)
    angles = t[:, None].float() * torch.exp(-math.log(10000) * index / FREQUENCIES)  # (R, 128)
    return torch.cat([angles.cos(), angles.sin()], dim=1)  # (R, 256)


class ResidualBlock(nn.Module):
    """x + gate * MLP(LayerNorm(x) * (1 + scale) + shift); the condition gives all three."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x: Float[Tensor, "R W"], y: Float[Tensor, "R W"]) -> Float[Tensor, "R W"]:
        """Apply the block to x under the condition y."""
        shift, scale, gate = self.modulation(y).chunk(3, dim=1)
        return x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)


class FinalLayer(nn.Module):
    """Modulated layer norm without weights of its own, and the projection to the outputs."""

    def __init__(self, width: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(width, out_channels)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Float[Tensor, "R W"], y: Float[Tensor, "R W"]) -> Float[Tensor, "R O"]:
        """Project x under the condition y."""
        shift, scale = self.modulation(y).chunk(2, dim=1)
        return self.linear(self.norm(x) * (1 + scale) + shift)


class Denoiser(nn.Module):
    """The MLP: its output is eps (C channels) and the variance's interpolation v (C channels)."""

    def __init__(self, *, channels: int, z_width: int, width: int, num_blocks: int) -> None:
        super().__init__()
        self.time_mlp = nn.Sequential(
            nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.z_proj = nn.Linear(z_width, width)
        self.input_proj = nn.Linear(channels, width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(num_blocks))
        self.final = FinalLayer(width, 2 * channels)

    def initialize(self, generator: torch.Generator) -> None:
        """Set every weight.

        | what                                | weight         | bias |
        |-------------------------------------|----------------|------|
        | Linear                              | Xavier uniform | 0    |
        | the time MLP's two Linears          | N(0, 0.02)     | 0    |
        | modulations and the last Linear     | 0              | 0    |
        | LayerNorm                           | 1              | 0    |
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        for name, parameter in self.named_parameters():
            if name.startswith("time_mlp") and name.endswith("weight"):
                nn.init.normal_(parameter, std=0.02, generator=generator)
            elif "modulation" in name or name.startswith("final"):
                nn.init.zeros_(parameter)

    def embed_time(self, t: Int[Tensor, " R"]) -> Float[Tensor, "R W"]:
        """Embed training steps 0 to 999."""
        return self.time_mlp(time_features(t))

    def embed_z(self, z: Float[Tensor, "*R D"]) -> Float[Tensor, "*R W"]:
        """Embed the transformer's condition."""
        return self.z_proj(z)

    def denoise(self, x_t: Float[Tensor, "R C"], y: Float[Tensor, "R W"]) -> Float[Tensor, "R C2"]:
        """Return eps and v, given the sum y of the two embeddings."""
        x = self.input_proj(x_t)  # (R, W)
        for block in self.blocks:
            x = block(x, y)
        return self.final(x, y)  # (R, 2 C)

    def forward(
        self, x_t: Float[Tensor, "R C"], t: Int[Tensor, " R"], z: Float[Tensor, "R D"]
    ) -> Float[Tensor, "R C2"]:
        """Return eps and v of each row."""
        return self.denoise(x_t, self.embed_time(t) + self.embed_z(z))
