"""8-bit images to latents and back, with any tokenizer.

Shapes: B batch, H W an image, X channels of moments, c channels of a latent, h w the latent grid.
"""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor

from mar.data.images import to_float, to_uint8
from mar.latents.posterior import Posterior
from mar.precision import Precision, arithmetic, one_thread
from mar.tokenizers.interface import Tokenizer


PART = 8  # images that a thread of the CPU encodes at a time; latents may depend on it


@dataclass(frozen=True)
class EncodedImages:
    """What a tokenizer makes of images, and what a latent cache keeps of them.

    Attributes:
        moments: Those of the posterior, as `Posterior.of` reads them.
        code_indices: The index of the code nearest to each latent, where there is a codebook.
        latent_channels: Channels of a latent.
    """

    moments: Float[Tensor, "B X h w"]
    code_indices: Int[Tensor, "B h w"] | None
    latent_channels: int

    @property
    def posterior(self) -> Posterior:
        """The distribution of the latents."""
        return Posterior.of(self.moments, self.latent_channels)

    def cpu(self) -> "EncodedImages":
        """Return the same on the CPU."""
        codes = None if self.code_indices is None else self.code_indices.cpu()
        return EncodedImages(self.moments.cpu(), codes, self.latent_channels)


@torch.no_grad()
def encode_images(
    tokenizer: Tokenizer, images: UInt8[Tensor, "B 3 H W"], precision: Precision = "float32"
) -> EncodedImages:
    """Encode images on the tokenizer's device, where the result stays, in float32.

    Args:
        tokenizer: What encodes.
        images: What is encoded.
        precision: Arithmetic of the encoder; the nearest code is found in float32 in any case.

    Raises:
        ValueError: the images do not divide into latents.
    """
    with arithmetic(precision, tokenizer.device):
        moments = tokenizer.encode(to_float(images.to(tokenizer.device))).float()
    channels = tokenizer.latent_channels
    codes = tokenizer.quantise(Posterior.of(moments, channels).mean)
    return EncodedImages(moments, codes, channels)


@contextmanager
def encoder(
    tokenizer: Tokenizer, precision: Precision
) -> Generator[Callable[[UInt8[Tensor, "B 3 H W"]], EncodedImages]]:
    """Yield a function that encodes images, with the result on the CPU.

    It does not depend on the number of threads of a CPU: each encodes a few images by itself.
    """
    encode_part = partial(encode_images, tokenizer, precision=precision)
    if tokenizer.device.type != "cpu":
        yield lambda images: encode_part(images).cpu()
        return
    with (
        one_thread() as threads,
        # The number of threads is one of each thread.
        ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):

        def encode(images: UInt8[Tensor, "B 3 H W"]) -> EncodedImages:
            parts = pool.map(encode_part, torch.split(images, PART))
            return concatenate(list(parts))

        yield encode


def precision_error(
    tokenizer: Tokenizer, images: UInt8[Tensor, "B 3 H W"], precision: Precision
) -> float:
    """Return how far arithmetic moves latents from those of float32, to three digits.

    It is the root mean square of the difference, relative to that of the latents (their means,
    where they have a variance).
    """
    with encoder(tokenizer, "float32") as encode:
        exact = encode(images).posterior.mean
    with encoder(tokenizer, precision) as encode:
        found = encode(images).posterior.mean
    error = (found - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    return float(f"{float(error):.3g}")


def concatenate(parts: Sequence[EncodedImages]) -> EncodedImages:
    """Put batches together, in their order; there is at least one."""
    codes = [part.code_indices for part in parts if part.code_indices is not None]
    moments = torch.cat([part.moments for part in parts])
    return EncodedImages(moments, torch.cat(codes) if codes else None, parts[0].latent_channels)


def decode_tokens(
    tokenizer: Tokenizer, latents: Shaped[Tensor, "B c h w"], latent_std: float
) -> Float[Tensor, "B 3 H W"]:
    """Decode what a generator works on: normalised latents, or code indices (integers, c is 1).

    Args:
        tokenizer: What decodes.
        latents: As a generator sees and draws them.
        latent_std: What latents are divided by (`latents.json`).
    """
    if latents.is_floating_point():
        return tokenizer.decode(latents * latent_std).float()
    return tokenizer.decode_indices(latents.squeeze(1)).float()


@torch.no_grad()
def reconstruct(
    tokenizer: Tokenizer,
    images: UInt8[Tensor, "B 3 H W"],
    on_posterior: Callable[[Posterior], None] | None = None,
) -> UInt8[Tensor, "B 3 H W"]:
    """Encode and decode images by way of the posterior's mean; the result is on the CPU.

    Args:
        tokenizer: What encodes and decodes, on its device.
        images: The originals.
        on_posterior: Is called with their latents.
    """
    posterior = encode_images(tokenizer, images).posterior
    if on_posterior is not None:
        on_posterior(posterior)
    return to_uint8(tokenizer.decode(posterior.mean)).cpu()
