"""Encode images into what a cache holds of them: moments and, with a codebook, codes.

Shapes: B batch, H W an image, X channels of moments, h w the latent grid.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from mar.images import to_float
from mar.posterior import Posterior
from mar.tokenizer_interface import Tokenizer


class Encoded(NamedTuple):
    """Images as a tokenizer sees them, on the CPU."""

    moments: Float[Tensor, "B X h w"]
    codes: Int[Tensor, "B h w"] | None


@torch.no_grad()
def encode(tokenizer: Tokenizer, images: UInt8[Tensor, "B 3 H W"]) -> Encoded:
    """Encode images on the tokenizer's device."""
    moments = tokenizer.encode(to_float(images.to(tokenizer.device)))
    codes = tokenizer.quantise(Posterior.of(moments, tokenizer.latent_channels).mean)
    return Encoded(moments.cpu(), None if codes is None else codes.cpu())


def join(parts: Sequence[Encoded]) -> Encoded:
    """Put the parts of a shard together."""
    codes = [part.codes for part in parts if part.codes is not None]
    moments = torch.cat([part.moments for part in parts])
    return Encoded(moments, torch.cat(codes) if codes else None)
