"""From classes or texts to images: draw latents, undo their scale, decode.

Shapes: B batch, N tokens of an image, M tokens still to be drawn, C channels of a token, c
channels of a latent, h w the latent grid, H W an image.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from mar.data.images import to_uint8
from mar.model.mar import MAR
from mar.sampling.config import SampleConfig
from mar.sampling.generate import KnownTokens, OnTokens, generate
from mar.sampling.noise import draw_noise
from mar.sampling.reach import too_large_reason
from mar.tokenizers.codec import decode_tokens
from mar.tokenizers.interface import Tokenizer


DECODED = 64  # images at a time: decoding takes more memory for an image than generating
GREY = 128  # of what is not drawn yet


@torch.no_grad()
def generate_images(
    model: MAR,
    tokenizer: Tokenizer,
    given: Shaped[Tensor, "B ..."],
    indices: Sequence[int],
    config: SampleConfig,
    *,
    latent_std: float,
    autocast: Callable[[], AbstractContextManager[object]],
    known: KnownTokens | None = None,
    on_tokens: OnTokens | None = None,
) -> UInt8[Tensor, "B 3 H W"]:
    """Generate the images `indices` of a run, each from random numbers of its own.

    Args:
        model: The model, in evaluation mode.
        tokenizer: What the latents are decoded with.
        given: The class of each image, or its text.
        indices: The number of each image, from which its noise is drawn.
        config: How to sample.
        latent_std: What the latents were divided by in training.
        autocast: Makes the context of the transformer's forward passes; denoising and decoding are
            float32, as in the metrics of a tokenizer.
        known: Tokens to keep, from `mar.sampling.editing.keep`.
        on_tokens: Is called after each generation step with the tokens and with the positions of
            those still to be drawn, which `picture_so_far` takes.

    Raises:
        ValueError: an image came out as nan or infinite; the message has its index.
    """
    latents = generate_latents(
        model, given, indices, config, autocast=autocast, known=known, on_tokens=on_tokens
    )
    parts = [slice(start, start + DECODED) for start in range(0, len(latents), DECODED)]
    decode = partial(
        decode_images, tokenizer, latent_std=latent_std, unset_bound=config.unset_bound
    )
    return torch.cat([decode(latents[part], indices[part]) for part in parts])


@torch.no_grad()
def generate_latents(
    model: MAR,
    given: Shaped[Tensor, "B ..."],
    indices: Sequence[int],
    config: SampleConfig,
    *,
    autocast: Callable[[], AbstractContextManager[object]],
    known: KnownTokens | None = None,
    on_step: Callable[[int], None] | None = None,
    on_tokens: OnTokens | None = None,
) -> Shaped[Tensor, "B c h w"]:
    """Generate the normalised latents, or code indices, of the images `indices` of a run.

    The arguments are those of `generate_images`.

    Args:
        on_step: Is called after each generation step with the number of tokens known in an image.
    """
    device = next(model.parameters()).device
    noise = draw_noise(model, indices, config).to(device)
    with autocast():
        return generate(
            model,
            given.to(device),
            noise,
            config,
            known=known,
            on_step=on_step,
            on_tokens=on_tokens,
        )


@torch.no_grad()
def decode_images(
    tokenizer: Tokenizer,
    latents: Shaped[Tensor, "B c h w"],
    indices: Sequence[int],
    *,
    latent_std: float,
    unset_bound: str | None,
) -> UInt8[Tensor, "B 3 H W"]:
    """Decode the latents of the images `indices`, all at once; the result is on the CPU.

    Args:
        tokenizer: What they are decoded with.
        latents: They.
        indices: The number of each image.
        latent_std: What the latents were divided by in training.
        unset_bound: The key that would bound what is drawn (`SampleConfig.unset_bound`).

    Raises:
        ValueError: an image came out as nan or infinite; the message has its index.
    """
    decoded = decode_tokens(tokenizer, latents, latent_std)
    _check_finite(decoded, indices, unset_bound)
    return to_uint8(decoded).cpu()


@torch.no_grad()
def picture_so_far(
    model: MAR,
    tokenizer: Tokenizer,
    tokens: Shaped[Tensor, "B N C"],
    hidden: Int[Tensor, "B M"],
    *,
    latent_std: float,
) -> UInt8[Tensor, "B 3 H W"]:
    """Decode a generation that is under way; what is not drawn yet is grey.

    Args:
        model: The model that generates.
        tokenizer: What the latents are decoded with.
        tokens: The tokens drawn so far.
        hidden: The positions of the others.
        latent_std: What the latents were divided by in training.
    """
    decoded = decode_tokens(tokenizer, model.unpatchify(tokens), latent_std)
    images = to_uint8(decoded.nan_to_num())
    undrawn = torch.zeros(tokens.shape[:2], device=tokens.device).scatter(1, hidden, 1.0)
    undrawn = undrawn.reshape(-1, 1, model.rows, model.columns)
    undrawn = interpolate(undrawn, size=images.shape[2:], mode="nearest")  # (B, 1, H, W)
    return images.masked_fill(undrawn > 0, GREY).cpu()


def _check_finite(
    decoded: Float[Tensor, "B 3 H W"], indices: Sequence[int], unset_bound: str | None
) -> None:
    """Refuse images that hold nan or infinity, which bytes would show as black or white.

    Raises:
        ValueError: the message has their number and the index of the first.
    """
    finite = decoded.isfinite().flatten(1).all(dim=1)  # (B,)
    if not finite.all():
        first = indices[int(finite.int().argmin())]
        raise ValueError(
            f"{int((~finite).sum())} of {len(indices)} images hold nan or infinite values, image "
            f"{first} first: the tokenizer is trained too little, or "
            f"{too_large_reason(unset_bound)}"
        )
