"""Scenes as images: black, of 16 to 24 pixels, with real handwritten digits of 8 pixels.

A digit fills its cell in images of 16 pixels. In larger ones it lies at random in its cell.

Shapes: N images of digits, S side of an image.
"""

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from mar.scenes.grammar import COLORS, Scene, below


DIGIT = 8  # pixels
SMALLEST, LARGEST = 2 * DIGIT, 24  # sides of an image


def render(
    scene: Scene,
    images: UInt8[Tensor, "N 8 8"],
    labels: Int64[Tensor, " N"],
    rng: torch.Generator,
    *,
    side: int,
) -> UInt8[Tensor, "S S 3"]:
    """Draw a scene with some of the digits, each at a random place in its cell.

    Args:
        scene: What is where.
        images: Digits to choose from.
        labels: Which digit each is.
        rng: Chooses among them, and the places.
        side: Of the image; an even number from `SMALLEST` to `LARGEST`.
    """
    canvas = torch.zeros(side, side, 3, dtype=torch.uint8)
    nearest, farthest = places(side // 2)
    for digit, color, cell in zip(scene.digits, scene.colors, scene.cells, strict=True):
        of_digit = (labels == digit).nonzero().flatten()
        grey = images[of_digit[below(len(of_digit), rng)]].double() / 255
        colored = (grey[:, :, None] * torch.tensor(COLORS[color])).round().to(torch.uint8)
        y, x = (
            side // 2 * part + nearest + below(farthest - nearest + 1, rng)
            for part in divmod(cell, 2)
        )
        canvas[y : y + DIGIT, x : x + DIGIT] = colored
    return canvas


def places(cell: int) -> tuple[int, int]:
    """Return how far from the corner of a cell a digit lies, at least and at most, in pixels.

    Where there is room, a pixel stays free on each side, so that digits do not touch.
    """
    free = cell - DIGIT
    nearest = min(1, free // 2)
    return nearest, free - nearest
