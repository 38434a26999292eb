"""From what a generator works on to images: undo the scale of latents, or embed codes, and decode.

Shapes: B batch, c channels of a latent, h w the latent grid, H W an image.
"""

from jaxtyping import Float, Shaped
from torch import Tensor

from mar.tokenizer_interface import Tokenizer
from mar.vq import VQ


def decode(
    tokenizer: Tokenizer, latents: Shaped[Tensor, "B c h w"], latent_std: float
) -> Float[Tensor, "B 3 H W"]:
    """Decode normalised latents, or codes where they are whole numbers (c is 1).

    Args:
        tokenizer: What decodes.
        latents: As a generator sees and draws them.
        latent_std: What the latents were divided by (`latents.json`).
    """
    if latents.is_floating_point():
        return tokenizer.decode(latents * latent_std).float()
    assert isinstance(tokenizer, VQ)
    return tokenizer.decode_indices(latents.squeeze(1)).float()
