"""The scale of latents: measured over many of them, and judged before anything is trained on it.

Shapes: B batch, N images, c channels of a latent, h w the latent grid.
"""
# Tensor.tolist has no types:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from collections.abc import Sequence
from typing import TypedDict

import torch
from jaxtyping import Float
from torch import Tensor

from mar.latents.posterior import Posterior


# The standard deviation of a tokenizer that works. Published ones lie near 1, the inverse of their
# scale factors: 0.65 (SD3, 1/1.5305), 2.8 (FLUX, 1/0.3611), 4.3 (MAR's KL-16, 1/0.2325), 5.5 (SD,
# 1/0.18215), 7.7 (SDXL, 1/0.13025); pixels lie at 0.5 to 1. So there is room for a factor of ten
# and more on both sides, and what is outside has either collapsed or runs away.
MIN_STD, MAX_STD = 0.01, 100.0

# How far a scale that is given may be from 1 / std. That of released weights is kept where they are
# tuned on other images, whose latents spread a little less or more.
MOST_SCALED = 2.0

# All channels are divided by one number, and diffusion's least noise is 0.0064 of that (the cosine
# schedule at t = 0): what is a hundredth of the largest is about to be hidden by it.
CHANNEL_RATIO = 100.0

# A channel is active if this share of its variance is its posterior mean's, and not noise. For
# posteriors near a standard normal that is the 0.01 of Burda et al. (2016), who count units so.
LEAST_SIGNAL = 0.01


# How far from its mean a latent is thought to be drawn, in standard deviations of its posterior.
REACH = 3.0

# An image is far from the others if its largest latent is this many times that of half of them.
# Those of one data set are within a factor of three; a broken encoder's or file's are not.
FAR = 10.0


class Scale(TypedDict):
    """What `latents.json` says of the scale; the fields of `LatentsInfo` of the same names."""

    count: int
    largest: float
    mean: float
    std: float
    channel_mean: list[float]
    channel_std: list[float]


class Unmeasured(TypedDict):
    """The same where there are no images."""

    count: int
    largest: None
    mean: None
    std: None
    channel_mean: list[float]
    channel_std: list[float]


UNMEASURED: Unmeasured = {
    "count": 0,
    "largest": None,
    "mean": None,
    "std": None,
    "channel_mean": [],
    "channel_std": [],
}


class LatentStatistics:
    """Sums over the latents of many images, in float64, and what follows from them.

    Mean and std are those of the sampled posterior: its variance counts as well as its mean's.
    """

    def __init__(self, channels: int) -> None:
        self.count = 0
        self._values = 0  # in a channel
        self._has_variance = False
        # Of each channel: mean, squared mean, variance and log variance of the posteriors.
        self._sums = torch.zeros(4, channels, dtype=torch.float64)
        self._largest: list[Tensor] = []  # of each image

    def update(self, posterior: Posterior) -> None:
        """Add the latents of some images."""
        mean = posterior.mean.cpu().double()
        parts = [mean, mean.square()]
        reach = mean.abs()
        if posterior.log_variance is not None:
            log_variance = posterior.log_variance.cpu().double()
            parts += [log_variance.exp(), log_variance]
            reach = reach + REACH * (0.5 * log_variance).exp()
            self._has_variance = True
        for row, part in zip(self._sums, parts, strict=False):
            row += part.sum(dim=(0, 2, 3))
        self._largest.append(reach.flatten(1).amax(dim=1))
        self.count += len(mean)
        self._values += mean[:, 0].numel()

    def scale(self) -> Scale:
        """Return mean and std, over all latents and of each channel."""
        mean, square, variance, _ = self._sums / self._values
        second = square + variance
        total = second.mean() - mean.mean().square()
        return {
            "count": self.count,
            "largest": float(self.largest().max()),
            "mean": float(mean.mean()),
            # Of equal values the difference may be less than 0 by a rounding.
            "std": float(total.clamp(min=0).sqrt()),
            "channel_mean": mean.tolist(),
            "channel_std": (second - mean.square()).clamp(min=0).sqrt().tolist(),
        }

    def largest(self) -> Float[Tensor, " N"]:
        """Return the largest absolute value that a latent of each image takes.

        Where a latent has a variance, that is its mean and three standard deviations.
        """
        return torch.cat([torch.empty(0, dtype=torch.float64), *self._largest])

    def signal(self) -> list[float]:
        """Return the share of each channel's variance that is not the noise of its posterior."""
        mean, square, variance, _ = self._sums / self._values
        signal = (square - mean.square()).clamp(min=0)
        return (signal / (signal + variance).clamp(min=torch.finfo(torch.float64).tiny)).tolist()

    def summary(self) -> dict[str, float]:
        """Return numbers that describe latents, if there are any; `kl` is an image's, in nats."""
        if not self.count:
            return {}
        scale = self.scale()
        numbers = {
            "mean": scale["mean"],
            "std": scale["std"],
            "channel_std_min": min(scale["channel_std"]),
            "channel_std_max": max(scale["channel_std"]),
            "active_channels": sum(share >= LEAST_SIGNAL for share in self.signal()),
        }
        if self._has_variance:
            _, square, variance, log_variance = self._sums
            terms = square + variance - self._values - log_variance
            numbers["kl"] = 0.5 * float(terms.sum()) / self.count
        return numbers


def check_scale(statistics: LatentStatistics) -> None:
    """Refuse latents on which no generator can be trained.

    Raises:
        ValueError: their scale is outside the band, or they hold nothing but noise.
    """
    if not statistics.count:
        return
    std = statistics.scale()["std"]
    if not MIN_STD <= std <= MAX_STD:  # nor is nan
        cause = (
            "the encoder gives the same for every image"
            if std < MIN_STD
            else "nothing keeps the latents near a standard normal (tokenizer.kl_weight), "
            "or the tokenizer's training diverged"
        )
        raise ValueError(
            f"the latents' standard deviation is {std:.3g}, expected {MIN_STD:g} to {MAX_STD:g} "
            f"(KL-16: 4.3, SD: 5.5, pixels: 0.5 to 1): {cause}; "
            "the tokenizer's reconstructions and curves show which"
        )
    if (largest := max(statistics.signal())) < LEAST_SIGNAL:
        raise ValueError(
            f"the latents are noise: of no channel's variance more than {largest:.2%} is from "
            f"the images, expected {LEAST_SIGNAL:.0%} of one at least: the posterior has "
            "collapsed, as with too large a tokenizer.kl_weight; the tokenizer's reconstructions "
            "show whether images come back"
        )


def check_latent_std(std: float, latent_std: float, key: str) -> None:
    """Refuse a scale that was found for other latents: divided by it, they are not near 1.

    Args:
        std: Of the latents.
        latent_std: What they are divided by.
        key: Where the scale stands.

    Raises:
        ValueError: the std of the divided latents is not within a factor of `MOST_SCALED` of 1.
    """
    if not 1 / MOST_SCALED < std / latent_std < MOST_SCALED:
        raise ValueError(
            f"{key}: the latents' standard deviation is {std:.4g}, and multiplied by "
            f"{1 / latent_std:.4g} it is {std / latent_std:.4g}, expected about 1, with a scale of "
            f"about {1 / std:.4g}"
        )


def weak_channels_warning(statistics: LatentStatistics) -> str | None:
    """Return a warning about channels from which a generator learns nothing, if there are any."""
    if not statistics.count:
        return None
    deviations, signal = statistics.scale()["channel_std"], statistics.signal()
    least, largest = min(deviations), max(deviations)
    small = [n for n, std in enumerate(deviations) if std * CHANNEL_RATIO < largest]
    noise = [n for n, share in enumerate(signal) if share < LEAST_SIGNAL and n not in small]
    parts: list[str] = []
    if small:
        parts.append(
            f"the std of {_channels(small, len(signal))} is less than 1/{CHANNEL_RATIO:g} of the "
            f"largest ({least:.3g} and {largest:.3g}), and as all are divided by one number, the "
            "generator's noise hides what they hold"
        )
    if noise:
        parts.append(
            f"less than {LEAST_SIGNAL:.0%} of the variance of {_channels(noise, len(signal))} is "
            "from the images, the rest noise, which a generator learns in vain"
        )
    return "; ".join(parts) if parts else None


def outliers_warning(largest: Float[Tensor, " N"], names: Sequence[str]) -> str | None:
    """Return a warning about images whose latents are far larger than those of the others.

    Args:
        largest: The largest absolute value of each image's latents.
        names: The name of each image.
    """
    if not len(largest):
        return None
    usual = float(largest.median())
    num_far = int(torch.count_nonzero(largest > FAR * usual))
    if not num_far or not usual:
        return None
    first = int(largest.argmax())
    return (
        f"{names[first]}: its latents reach {float(largest[first]):.5g}, those of half of the "
        f"images at most {usual:.5g}; such values shift the scale of all latents ({num_far} of "
        f"{len(largest)} images reach over {FAR:g} times as far as that half)"
    )


def _channels(numbers: list[int], count: int) -> str:
    if len(numbers) == 1:
        return f"latent channel {numbers[0]} of {count}"
    shown = ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
    return f"{len(numbers)} of {count} latent channels ({shown})"
