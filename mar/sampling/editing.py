"""Edit images: keep some tokens of an image, and generate the others.

Inpainting generates the inside of a region, outpainting the outside, and a class-conditional edit
generates the region as another class. No training is needed: a model trained with random orders
can condition on any set of tokens (MAR, section 3.4).

Shapes: B batch, H W an image, h w the grid of tokens.
"""

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor
from torch.nn.functional import max_pool2d

from mar.model.mar import MAR
from mar.sampling.generate import KnownTokens
from mar.tokenizers.codec import encode_images
from mar.tokenizers.interface import Tokenizer


@torch.no_grad()
def keep(
    model: MAR,
    tokenizer: Tokenizer,
    images: UInt8[Tensor, "B 3 H W"],
    hidden: Bool[Tensor, "_ _"],  # (H, W), checked below
    *,
    latent_std: float,
) -> KnownTokens:
    """Return the tokens of images, of which `generate_images` then replaces the hidden ones.

    Args:
        model: The model.
        tokenizer: What the images are encoded with.
        images: The images to edit, of the size that the model generates.
        hidden: True for pixels to generate; a token is generated if one of its pixels is.
        latent_std: What the latents were divided by in training.

    Raises:
        ValueError: the images or the mask have another size.
    """
    patch = model.config.patch_size * tokenizer.stride
    height, width = model.rows * patch, model.columns * patch
    for name, found in {"images": images.shape[2:], "the mask": hidden.shape}.items():
        if tuple(found) != (height, width):
            raise ValueError(
                f"{name} must have {height} x {width} pixels, got {found[0]} x {found[1]}"
            )
    encoded = encode_images(tokenizer, images)
    if model.config.is_discrete:
        assert encoded.code_indices is not None
        tokens = model.patchify(encoded.code_indices[:, None])
    else:
        tokens = model.patchify(encoded.posterior.mean / latent_std)
    mask = max_pool2d(hidden[None].float(), patch)[0] > 0  # (h, w)
    return KnownTokens(tokens, mask.flatten().to(tokens.device))
