"""How far scores can be trusted: their spread over other samples, and what infinitely many give.

Shapes: B images, F features.
"""
# torch.linalg has no types:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float32, Float64, Int
from torch import Tensor

from mar.evaluation.statistics import Moments, Statistics, frechet_distance
from mar.seeds import make_rng


SMALLEST = 10  # the smallest subset of an extrapolation is that part of the images (the paper's)
GROUPS = 20  # of images that the jackknife leaves out in turn: it errs by a sixth


class Extrapolation(NamedTuple):
    """A Frechet distance extrapolated to infinitely many images.

    Attributes:
        value: The distance; it can be a little below 0.
        spread: Its standard deviation over other samples of as many images, if it was asked for;
            none for fewer than 200 images, whose smallest subset could lose too many of its images.
    """

    value: float
    spread: float | None


def mean_of_groups(groups: Sequence[Sequence[float | bool]]) -> tuple[float, float | None]:
    """Return the mean of all values, and its standard error over groups.

    Values of a group (images of one prompt) are not independent, so the groups are what is drawn:
    the mean is a ratio of sums over them, and the error is its linearised variance's root. None
    where there is but one group.
    """
    count = sum(map(len, groups))
    mean = sum(map(sum, groups)) / count
    num = len(groups)
    if num < 2:
        return mean, None
    residuals = [sum(group) - mean * len(group) for group in groups]
    variance = num / (num - 1) * sum(residual**2 for residual in residuals) / count**2
    return mean, math.sqrt(variance)


def jackknife_spread(without: Float64[Tensor, " n"]) -> float:
    """Return the standard deviation of a score over other samples.

    Args:
        without: The score without each image, or without each of as many groups of images.
    """
    return math.sqrt((len(without) - 1) * float(without.var(correction=0)))


def bootstrap_spread(
    score: Callable[[Int[Tensor, " B"]], float], count: int, *, resamples: int, seed: int
) -> float:
    """Return the standard deviation of a score over resampled images (Efron's bootstrap).

    Each resample draws as many images as there are, with replacement. Its distances are larger, as
    it has fewer different images: so the spread is around the score of the images themselves, not
    around the mean of the resamples.

    Args:
        score: Computes the score of the images of some indices.
        count: Of the images.
        resamples: How often they are drawn; at least 2.
        seed: Of the draws.
    """
    found = [
        score(torch.randint(count, (count,), generator=make_rng("bootstrap", seed, number)))
        for number in range(resamples)
    ]
    return float(torch.tensor(found, dtype=torch.float64).std())


def share_spread(share: float, count: int) -> float:
    """Return the standard deviation of a share of independent images, which needs no resamples."""
    return math.sqrt(share * (1 - share) / count)


def infinity_warning(name: str, count: int, width: int) -> str | None:
    """Return a warning if images are too few for `distance_at_infinity`, else None.

    The error of the distance falls as 1/N only if each subset has as many images as features.

    Args:
        name: What the extrapolated distance is called.
        count: Of the images.
        width: Features of an image.
    """
    if count // SMALLEST >= width:
        return None
    return (
        f"no {name}: it is extrapolated from a tenth of the images on, so {width} features need "
        f"{SMALLEST * width} images, not {count}"
    )


def distance_at_infinity(
    features: Float32[Tensor, "B F"],
    reference: Statistics,
    *,
    points: int,
    seed: int,
    with_spread: bool,
) -> Extrapolation:
    """Return the Frechet distance extrapolated to infinitely many images (FID infinity).

    The distance of N images is too large by a term in 1/N (Chong and Forsyth, 2020, arXiv
    1911.07023, section 3): a line is fitted to the distances of random subsets over 1/N, and read
    at 0. The images of the reference are as many as they are, and their term remains.

    The spread is that of a jackknife: the images fall into random groups, and the line is fitted
    again without each of them. The subsets keep their other images, so that an image counts as
    often as it stands in subsets. Where there is no distance, this rather overstates it.

    Args:
        features: Of the generated images, as many as `infinity_warning` says.
        reference: What they are compared with.
        points: Subsets, from a tenth of the images to all of them.
        seed: Chooses the subsets and the groups.
        with_spread: Whether to measure the spread, which takes twenty times as many distances.
    """
    count = len(features)
    smallest = max(count // SMALLEST, 2)
    num_groups = GROUPS if with_spread and smallest >= GROUPS else 0
    order = torch.randperm(count, generator=make_rng("groups", seed))
    groups = (torch.arange(count) * num_groups // count)[order.argsort()]
    sizes: list[list[int]] = []
    distances: list[list[float]] = []
    for size in torch.linspace(smallest, count, points).long().tolist():
        chosen = _subset(count, size, seed)
        found = [  # one covariance in memory at a time
            (it.count or 0, frechet_distance(it, reference))
            for it in _leaving_out(features[chosen], groups[chosen], num_groups)
        ]
        sizes.append([left for left, _ in found])
        distances.append([distance for _, distance in found])
    value, *without = (
        _at_infinity(*column)
        for column in zip(zip(*sizes, strict=True), zip(*distances, strict=True), strict=True)
    )
    if not without:
        return Extrapolation(value, None)
    return Extrapolation(value, jackknife_spread(torch.tensor(without, dtype=torch.float64)))


def _subset(count: int, size: int, seed: int) -> Int[Tensor, " b"]:
    return torch.randperm(count, generator=make_rng("subset", seed, size))[:size]


def _leaving_out(
    features: Float32[Tensor, "B F"], groups: Int[Tensor, " B"], num_groups: int
) -> Iterator[Statistics]:
    """Yield the statistics of all images, then those without each group."""
    moments = Moments.of(features)
    yield moments.statistics()
    for group in range(num_groups):
        yield moments.without(features[groups == group])


def _at_infinity(sizes: Sequence[int], distances: Sequence[float]) -> float:
    """Return where the line through the distances over 1/N meets 0."""
    inverse = 1 / torch.tensor(sizes, dtype=torch.float64)
    known = torch.tensor(distances, dtype=torch.float64)[:, None]
    line = torch.linalg.lstsq(torch.stack([torch.ones_like(inverse), inverse], dim=1), known)
    return float(line.solution[0])
