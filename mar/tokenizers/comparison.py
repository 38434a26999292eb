"""Before a long run: do cached latents decode to the images whose names they bear?

What the cache gives is compared with what the tokenizer makes of the image itself, now. The two are
the same but for rounding, however good or bad the tokenizer is; so no PSNR is asked for, only that
latents are nearer to those of their image than to another's, and that pictures lose nothing.

Shapes: B images, H W an image, c channels of a latent, h w the latent grid, K images of a cache,
N of a manifest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor

from mar.data.images import to_uint8
from mar.evaluation.psnr import psnr
from mar.latents.cache import LatentCache
from mar.latents.posterior import Posterior
from mar.latents.scale import MOST_SCALED, LatentStatistics, check_latent_std
from mar.tokenizers.codec import decode_tokens, encode_images
from mar.tokenizers.interface import Tokenizer


CAUSES = (
    "Usual causes: the cache was made by another tokenizer, or of images that have changed since; "
    "its names are in another order than its latents; its mirror images are flipped otherwise; one "
    "of its files is damaged; its number type is too coarse for the latents"
)
COMPARED = 12  # images: spread over the files of a cache, and decoded within seconds

# How far what is cached of an image may be from it. Of latents, the mean square in units of that
# between two images: measured on the digits, 1e-7 in float16, 0.4 to 2 where something is
# wrong. Of codes, the share that differs: rounding moves one latent in some hundred over a border.
MAX_LATENT_ERROR = {"latents": 0.03, "codes": 0.25}
UNITS = {"latents": "of the mean square between two images", "codes": "of all codes"}
LEAST_SPREAD = 1e-4  # of the latents' mean square: float16 and bfloat16 round to 1e-7 and 1e-5
MOST_LOST = 3.0  # dB, of all images together: twice the squared error
EXACT = 48.1  # dB: PSNR of an error of one level of 255, above which there is nothing to lose

Content = Literal["latents", "codes"]


@dataclass(frozen=True)
class Comparison:
    """What a cache holds of some images, beside what the tokenizer makes of them.

    Attributes:
        content: What was compared.
        names: Of the images.
        originals: The images.
        cached: What the content of the cache decodes to.
        direct: What the tokenizer makes of the images.
        latent_error: How far the cached content of each image is from the tokenizer's, in `UNITS`.
    """

    content: Content
    names: list[str]
    originals: UInt8[Tensor, "B 3 H W"]
    cached: UInt8[Tensor, "B 3 H W"]
    direct: UInt8[Tensor, "B 3 H W"]
    latent_error: Float[Tensor, " B"]

    def psnr(self) -> dict[str, float]:
        """Return the PSNR in dB by way of the cache, of the tokenizer itself, and of other images.

        The last is that of a picture from the cache beside the next image.
        """
        return {
            "psnr_cached": psnr(self.cached, self.originals),
            "psnr_direct": psnr(self.direct, self.originals),
            "psnr_shuffled": psnr(self.cached, self.originals.roll(1, dims=0)),
        }

    def check(self, what: str) -> None:
        """Refuse a cache that does not hold the images that it names; `what` are these called.

        Raises:
            ValueError: the message names the first image, and what was found and expected.
        """
        most = MAX_LATENT_ERROR[self.content]
        wrong = ~(self.latent_error <= most)  # nan is wrong as well
        if wrong.any():
            first = int(wrong.int().argmax())
            found, expected = (
                psnr(pictures[first], self.originals[first])
                for pictures in (self.cached, self.direct)
            )
            raise ValueError(
                f"the latent cache does not hold the {what} that it names: "
                f"{int(wrong.sum())} of {len(wrong)} are something else. {self.names[first]}: PSNR "
                f"{found:.1f} dB by way of its cached {self.content}, expected {expected:.1f} dB, "
                f"as by the tokenizer directly; they differ by "
                f"{float(self.latent_error[first]):.3g} {UNITS[self.content]}, "
                f"expected at most {most:g}. {CAUSES}"
            )
        found = self.psnr()
        if not found["psnr_cached"] >= min(found["psnr_direct"], EXACT) - MOST_LOST:
            raise ValueError(
                f"the cached {self.content} of the {what} do not decode to them: PSNR "
                f"{found['psnr_cached']:.1f} dB, expected {found['psnr_direct']:.1f} dB, as by the "
                f"tokenizer directly, though they are apart by no more than {most:g} "
                f"{UNITS[self.content]}: the tokenizer's decoder makes too much of that"
            )

    def poor_tokenizer_warning(self) -> str | None:
        """Return a warning if pictures resemble other images as much as their own."""
        found = self.psnr()
        if len(self.names) < 2 or found["psnr_direct"] > found["psnr_shuffled"] + 1:
            return None
        return (
            f"the tokenizer hardly tells images apart: PSNR {found['psnr_direct']:.1f} dB with the "
            f"image that it encodes, {found['psnr_shuffled']:.1f} dB with another; a generator "
            "can be no better"
        )


def choose(count: int) -> list[int]:
    """Return the indices of at most `COMPARED` images, evenly spread, the last one among them."""
    number = min(COMPARED, count)
    return [(index + 1) * count // number - 1 for index in range(number)]


def rows_of_manifest(
    cache: LatentCache, names: Sequence[str], labels: Int[Tensor, " N"]
) -> Int[Tensor, " K"]:
    """Return where each image of a cache stands in the manifest.

    Args:
        cache: The cache.
        names: Of the images in the manifest.
        labels: Theirs.

    Raises:
        ValueError: an image is not in the manifest, or has another label there.
    """
    rows = torch.arange(len(cache))
    if cache.names != names:
        places = {name: row for row, name in enumerate(names)}
        unknown = [name for name in cache.names if name not in places]
        if unknown:
            raise ValueError(
                f"the latent cache holds {len(unknown)} images that the manifest does not list for "
                f"training, first {unknown[0]}"
            )
        rows = torch.tensor([places[name] for name in cache.names])
    differing = (labels[rows] != cache.labels).nonzero().flatten()
    if len(differing):
        first = int(differing[0])
        raise ValueError(
            f"the latent cache gives {len(differing)} images another label than the manifest: "
            f"{cache.names[first]} has {int(cache.labels[first])}, "
            f"expected {int(labels[rows[first]])}"
        )
    return rows


@torch.no_grad()
def compare(
    tokenizer: Tokenizer,
    cache: LatentCache,
    chosen: Sequence[int],
    images: UInt8[Tensor, "B 3 H W"],
    *,
    mirrored: bool,
    content: Content,
) -> Comparison:
    """Compare what a cache holds with the images that it should be of.

    Args:
        tokenizer: What a generator's images will be decoded with.
        cache: What the generator will be trained on.
        chosen: Indices into the cache.
        images: Those that the cache names there.
        mirrored: Compare mirror images.
        content: Compare latents, or codes.
    """
    originals = images.flip(3) if mirrored else images
    encoded = encode_images(tokenizer, originals)
    latents = encoded.posterior.mean
    stored = read(cache, chosen, mirrored=mirrored, content=content).to(tokenizer.device)
    if content == "codes":
        codes = encoded.code_indices
        assert codes is not None
        latent_error = (stored[:, 0] != codes).flatten(1).float().mean(dim=1)
    else:
        error = (stored - latents).square().flatten(1).mean(dim=1)
        # Twice the variance between images; of one alone, that which it has itself.
        spread = 2 * latents.var(dim=0, correction=0) if len(latents) > 1 else latents.var()
        # Equal images are not apart at all: what rounding does to latents is allowed even then.
        least = LEAST_SPREAD * latents.square().mean() + torch.finfo(torch.float32).tiny
        latent_error = error / spread.mean().clamp(min=least)
    return Comparison(
        content,
        [cache.names[index] for index in chosen],
        originals,
        decode_stored(tokenizer, stored, cache.info.latent_std),
        to_uint8(tokenizer.decode(latents).float()).cpu(),
        latent_error.cpu(),
    )


def check_scale(cache: LatentCache, chosen: Sequence[int]) -> None:
    """Refuse a scale in `latents.json` that is not the cache's; without images there is none.

    Raises:
        ValueError: the latents of the chosen images have another std, or divided they are not near
            1.
    """
    info = cache.info
    if info.std is None:
        return
    statistics = LatentStatistics(info.latent.channels)
    plain = torch.zeros(len(chosen), dtype=torch.bool)
    moments = cache.moments(torch.tensor(chosen), plain)
    statistics.update(Posterior.of(moments, info.latent.channels))
    found = statistics.scale()["std"]
    if not info.std / MOST_SCALED < found < info.std * MOST_SCALED:
        raise ValueError(
            f"latents.json: std is {info.std:.4g}, expected about {found:.4g}, that of "
            f"{len(chosen)} images in the cache"
        )
    check_latent_std(info.std, info.latent_std, "latents.json: latent_std")


def read(
    cache: LatentCache, chosen: Sequence[int], *, mirrored: bool, content: Content
) -> Shaped[Tensor, "B c h w"]:
    """Read latents, the means of their posteriors, or codes (c is 1).

    Raises:
        ValueError: the tokenizer has no such code.
    """
    indices, flags = torch.tensor(chosen), torch.full((len(chosen),), mirrored)
    if content == "latents":
        moments = cache.moments(indices, flags)
        return Posterior.of(moments, cache.info.latent.channels).mean
    codes = cache.code_indices(indices, flags)
    size, largest = cache.info.codebook_size or 0, int(codes.max())
    if largest >= size:
        raise ValueError(
            f"the latent cache holds the code {largest}, expected less than {size}: "
            "one of its files is damaged"
        )
    return codes[:, None]


@torch.no_grad()
def decode_stored(
    tokenizer: Tokenizer, stored: Shaped[Tensor, "B c h w"], latent_std: float
) -> UInt8[Tensor, "B 3 H W"]:
    """Decode what `read` gave as a generator's samples are; what is not a number shows mid-grey."""
    normalised = stored / latent_std if stored.is_floating_point() else stored
    return to_uint8(decode_tokens(tokenizer, normalised, latent_std).nan_to_num()).cpu()
