"""How far scores can be trusted: their spread over other samples, and what infinitely many give.

Shapes: B images, F features.
"""
# torch.linalg has no types:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import math
from collections.abc import Callable

import torch
from jaxtyping import Float32, Int
from torch import Tensor

from mar.evaluation.statistics import Statistics, frechet_distance, measure_features
from mar.seeds import make_rng


SMALLEST = 10  # the smallest subset of an extrapolation is that part of the images (the paper's)


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
    features: Float32[Tensor, "B F"], reference: Statistics, *, points: int, seed: int
) -> float:
    """Return the Frechet distance extrapolated to infinitely many images (FID infinity).

    The distance of N images is too large by a term in 1/N (Chong and Forsyth, 2020, arXiv
    1911.07023, section 3): a line is fitted to the distances of random subsets over 1/N, and read
    at 0. The images of the reference are as many as they are, and their term remains.

    Args:
        features: Of the generated images, as many as `infinity_warning` says.
        reference: What they are compared with.
        points: Subsets, from a tenth of the images to all of them.
        seed: Chooses the subsets.
    """
    count = len(features)
    sizes = torch.linspace(max(count // SMALLEST, 2), count, points).long()
    distances = [
        frechet_distance(measure_features(features[_subset(count, int(size), seed)]), reference)
        for size in sizes
    ]
    inverse = torch.stack([torch.ones(points).double(), 1 / sizes.double()], dim=1)
    line = torch.linalg.lstsq(inverse, torch.tensor(distances, dtype=torch.float64)[:, None])
    return float(line.solution[0])


def _subset(count: int, size: int, seed: int) -> Int[Tensor, " b"]:
    return torch.randperm(count, generator=make_rng("subset", seed, size))[:size]
