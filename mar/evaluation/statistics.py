"""Mean and covariance of features, and the Frechet distance of two sets of them.

Shapes: B images, F features.
"""
# torch.linalg has no types:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float32, Float64
from torch import Tensor


ROWS = 2000  # images whose features are float64 at a time
DISTANCES = 40_000_000  # of images in memory at a time: 160 MB


def rows_at_a_time(num_others: int) -> int:
    """Return of how many images the distances to all others are in memory at a time."""
    return max(1, min(ROWS, DISTANCES // num_others))


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of the features of images.

    Attributes:
        mean: Of each feature.
        covariance: The unbiased one.
        count: Of the images; None if the file that others published does not say.
    """

    mean: Float64[Tensor, " F"]
    covariance: Float64[Tensor, "F F"]
    count: int | None

    @cached_property
    def root(self) -> Float64[Tensor, "F F"]:
        """The symmetric square root of the covariance."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return vectors * values.clamp(min=0).sqrt() @ vectors.T


class Moments:
    """Mean and covariance of features that come in batches, in float64.

    The batches are merged by the formula of Chan et al. (1979), which subtracts no large numbers
    of nearly the same size.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self._mean = torch.zeros(width, dtype=torch.float64)
        self._scatter = torch.zeros(width, width, dtype=torch.float64)

    @classmethod
    def of(cls, features: Float32[Tensor, "B F"]) -> "Moments":
        """Return those of features that are in memory."""
        moments = cls(features.shape[1])
        for batch in torch.split(features, ROWS):
            moments.update(batch)
        return moments

    def update(self, features: Float32[Tensor, "B F"]) -> None:
        """Add the features of more images."""
        x = features.double()
        mean, count = x.mean(dim=0), len(x)
        centred = x - mean
        shift = mean - self._mean
        total = self.count + count
        self._scatter += centred.T @ centred + shift.outer(shift) * (self.count * count / total)
        self._mean += shift * (count / total)
        self.count = total

    def statistics(self) -> Statistics:
        """Return the mean and the unbiased covariance of all features added so far."""
        return Statistics(self._mean, self._scatter / (self.count - 1), self.count)

    def without(self, features: Float32[Tensor, "B F"]) -> Statistics:
        """Return the statistics of all features added so far but these, which are some of them.

        The formula of `update`, solved for what was there before; at least two must remain.
        """
        if not len(features):
            return self.statistics()
        x = features.double()
        mean, count = x.mean(dim=0), len(x)
        centred = x - mean
        rest = self.count - count
        shift = (mean - self._mean) * (self.count / rest)  # from the mean of the rest
        scatter = self._scatter - centred.T @ centred
        scatter -= shift.outer(shift) * (rest * count / self.count)
        return Statistics(mean - shift, scatter / (rest - 1), rest)


def measure_features(features: Float32[Tensor, "B F"]) -> Statistics:
    """Return the statistics of features that are in memory."""
    return Moments.of(features).statistics()


def frechet_distance(first: Statistics, second: Statistics) -> float:
    """Return |m - n|^2 + tr(A + B - 2 (A B)^(1/2)) of means m, n and covariances A, B (FID).

    A B has the eigenvalues of the symmetric R A R, where R is the root of B, whose own are real and
    not negative: so what rounding adds to a covariance of few images has no imaginary part.
    """
    shift = first.mean - second.mean
    values = torch.linalg.eigvalsh(second.root @ first.covariance @ second.root)
    spread = first.covariance.trace() + second.covariance.trace()
    return float(shift @ shift + spread - 2 * values.clamp(min=0).sqrt().sum())
