"""PSNR of 8-bit images.

In a file of its own, so that training a tokenizer, which shows it as a curve, depends on no other
metric.

Shapes: B batch, H W an image.
"""

from jaxtyping import UInt8
from torch import Tensor


def psnr(images: UInt8[Tensor, "*B 3 H W"], originals: UInt8[Tensor, "*B 3 H W"]) -> float:
    """Return the PSNR of the mean squared error over all images, in dB; infinite without one."""
    error = (images.double() - originals.double()).square().mean()
    return float(10 * (255.0**2 / error).log10())
