"""PSNR of 8-bit images.

In a file of its own, so that training a tokenizer, which shows it as a curve, depends on no other
metric.

Shapes: B batch, H W an image.
"""

from jaxtyping import UInt8
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio


def psnr(images: UInt8[Tensor, "*B 3 H W"], originals: UInt8[Tensor, "*B 3 H W"]) -> float:
    """Return the PSNR of the mean squared error over all images, in dB; infinite without one."""
    ratio = peak_signal_noise_ratio(images.double(), originals.double(), data_range=255.0)
    return float(ratio)
