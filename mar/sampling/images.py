"""From classes to images: draw latents, undo their scale, decode.

Shapes: B batch, H W an image.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from mar.data.images import to_uint8
from mar.model.mar import MAR
from mar.sampling.generate import KnownTokens, SampleConfig, draw_noise, generate
from mar.tokenizers.codec import decode_tokens
from mar.tokenizers.interface import Tokenizer


DECODED = 64  # images at a time: decoding takes more memory for an image than generating


@torch.no_grad()
def generate_images(
    model: MAR,
    tokenizer: Tokenizer,
    labels: Int[Tensor, " B"],
    indices: Sequence[int],
    config: SampleConfig,
    *,
    latent_std: float,
    autocast: Callable[[], AbstractContextManager[object]],
    known: KnownTokens | None = None,
    on_step: Callable[[int], None] | None = None,
    on_latents: Callable[[Tensor], None] | None = None,
) -> UInt8[Tensor, "B 3 H W"]:
    """Generate the images `indices` of a run, each from random numbers of its own.

    Args:
        model: The model, in evaluation mode.
        tokenizer: What the latents are decoded with.
        labels: The class of each image.
        indices: The number of each image, from which its noise is drawn.
        config: How to sample.
        latent_std: What the latents were divided by in training.
        autocast: Makes the context of the transformer's forward passes; denoising and decoding are
            float32, as in the metrics of a tokenizer.
        known: Tokens to keep, from `mar.sampling.editing.keep`.
        on_step: Is called after each generation step with the number of tokens known in an image.
        on_latents: Is called with what is decoded.

    Raises:
        ValueError: an image came out as NaN.
    """
    device = next(model.parameters()).device
    noise = draw_noise(model, indices, config).to(device)
    with autocast():
        latents = generate(model, labels.to(device), noise, config, known=known, on_step=on_step)
    if on_latents is not None:
        on_latents(latents)
    parts = [
        decode_tokens(tokenizer, latents[start : start + DECODED], latent_std)
        for start in range(0, len(latents), DECODED)
    ]
    return torch.cat([to_uint8(part).cpu() for part in parts])
