"""Give images back by way of a tokenizer's latents, and tell how near they come.

Shapes: B batch, H W an image.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import UInt8
from torch import Tensor

from mar.images import to_float, to_uint8
from mar.posterior import Posterior
from mar.tokenizer_interface import Tokenizer


@torch.no_grad()
def reconstruct(
    tokenizer: Tokenizer,
    images: UInt8[Tensor, "B 3 H W"],
    watch: Callable[[Posterior], None] | None = None,
) -> UInt8[Tensor, "B 3 H W"]:
    """Encode and decode images by way of the posterior's mean, on the tokenizer's device.

    Args:
        tokenizer: What encodes and decodes.
        images: The originals.
        watch: Is shown their latents.
    """
    moments = tokenizer.encode(to_float(images.to(tokenizer.device)))
    posterior = Posterior.of(moments, tokenizer.latent_channels)
    if watch is not None:
        watch(posterior)
    return to_uint8(tokenizer.decode(posterior.mean)).cpu()


def psnr(images: UInt8[Tensor, "*B 3 H W"], originals: UInt8[Tensor, "*B 3 H W"]) -> float:
    """Return the PSNR of the mean squared error over all images, in dB; infinite without one."""
    error = float((images.double() - originals.double()).square().mean())
    return 10 * math.log10(255**2 / error) if error else math.inf
