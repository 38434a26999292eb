"""The patch discriminator of pix2pix (arXiv 1611.07004), as VQGAN and LDM use it.

Group norm replaces their batch norm, so the logits of an image do not depend on the other images of
a batch: a step does not depend on the micro-batch, there are no running averages, and the gradient
penalty R1 is that of single images.

Shapes: B batch, H W an image, h w the grid of patches.
"""

import math
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn


WIDEST = 8  # multiples of the base channels


class PatchDiscriminator(nn.Module):
    """Return a logit for each patch, above 0 for real ones; 3 layers see patches of 70 pixels."""

    def __init__(self, base_channels: int, num_layers: int) -> None:
        super().__init__()
        widths = [base_channels * min(2**level, WIDEST) for level in range(num_layers + 1)]
        layers: list[nn.Module] = [_convolution(3, widths[0], stride=2), nn.LeakyReLU(0.2)]
        for level, (before, width) in enumerate(pairwise(widths), 1):
            stride = 2 if level < num_layers else 1
            layers += [
                _convolution(before, width, stride=stride, bias=False),
                nn.GroupNorm(math.gcd(32, width), width),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, _convolution(widths[-1], 1, stride=1))

    def initialize(self, rng: torch.Generator) -> None:
        """Set every weight as pix2pix does.

        | what        | weight       | bias |
        |-------------|--------------|------|
        | Conv2d      | N(0, 0.02^2) | 0    |
        | GroupNorm   | N(1, 0.02^2) | 0    |
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.GroupNorm):
                mean = 0.0 if isinstance(module, nn.Conv2d) else 1.0
                nn.init.normal_(module.weight, mean, 0.02, generator=rng)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B h w"]:
        """Return the logits of the patches of images in [-1, 1]."""
        return self.layers(images)[:, 0].float()


def smallest_image(num_layers: int) -> int:
    """Return the side in pixels of the smallest images that have at least one patch."""
    return 3 * 2**num_layers


def _convolution(channels: int, width: int, *, stride: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(channels, width, 4, stride=stride, padding=1, bias=bias)
