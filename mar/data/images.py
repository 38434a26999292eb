"""Images as bytes and as the floats that networks read.

Apart from the decoding of files: whoever has tensors need not depend on it.

Shapes: B batch, H W height and width in pixels.
"""

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor


def to_float(images: UInt8[Tensor, "B 3 H W"]) -> Float32[Tensor, "B 3 H W"]:
    """Map bytes to [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Float32[Tensor, "B 3 H W"]) -> UInt8[Tensor, "B 3 H W"]:
    """Map [-1, 1] to bytes: the nearest one, and what lies outside is clipped.

    Raises:
        ValueError: a value is NaN, which would turn into a black pixel without a word.
    """
    if images.isnan().any():
        broken = int(images.isnan().flatten(1).any(dim=1).sum())
        raise ValueError(f"{broken} of {len(images)} images hold nan")
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
