"""Scenes as images: black, of 24 x 24 pixels, with real handwritten digits.

Shapes: N images of digits.
"""

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from mar.scenes.grammar import COLORS, Scene, below


SIDE, CELL, DIGIT = 24, 12, 8  # pixels
NEAREST, FARTHEST = 1, 3  # pixels from the corner of its cell to a digit


def render(
    scene: Scene,
    images: UInt8[Tensor, "N 8 8"],
    labels: Int64[Tensor, " N"],
    rng: torch.Generator,
) -> UInt8[Tensor, "24 24 3"]:
    """Draw a scene with some of the digits, each at a random place in its cell."""
    canvas = torch.zeros(SIDE, SIDE, 3, dtype=torch.uint8)
    for digit, color, cell in zip(scene.digits, scene.colors, scene.cells, strict=True):
        of_digit = (labels == digit).nonzero().flatten()
        grey = images[of_digit[below(len(of_digit), rng)]].double() / 255
        colored = (grey[:, :, None] * torch.tensor(COLORS[color])).round().to(torch.uint8)
        y, x = (
            CELL * part + NEAREST + below(FARTHEST - NEAREST + 1, rng) for part in divmod(cell, 2)
        )
        canvas[y : y + DIGIT, x : x + DIGIT] = colored
    return canvas
