"""How averages count the steps of a training, and which sum of some is closest to another.

A profile p is a density over the time of a training. As an average of weights is linear in its
profile, the sum of snapshots whose profile is closest to a wanted one is the closest average
(EDM2, section 3.2 and appendix C). All inner products have closed forms.
"""
# scipy has no types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import hyp1f1

from mar.averaging.power import exponent


@dataclass(frozen=True)
class Power:
    """p(s) = (gamma + 1) s^gamma / t^(gamma + 1) for s up to t (EDM2, section 3.1).

    Attributes:
        gamma: The power.
        step: t, the steps that were averaged.
    """

    gamma: float
    step: int

    @classmethod
    def of_width(cls, width: float, step: int) -> "Power":
        """Return the profile of a relative width."""
        return cls(exponent(width), step)

    def square(self) -> float:
        """Return the inner product with itself."""
        return self.dot(self)

    def dot(self, other: "Power") -> float:
        """Return the inner product with another such profile (EDM2, appendix C)."""
        first, second = sorted((self, other), key=lambda profile: profile.step)
        # With t the earlier step: t^(g + h + 1) / (t^(g + 1) u^(h + 1)) = (t / u)^h / u.
        ratio = (first.step / second.step) ** second.gamma / second.step
        return (self.gamma + 1) * (other.gamma + 1) / (self.gamma + other.gamma + 1) * ratio


@dataclass(frozen=True)
class Exponential:
    """The profile of a conventional EMA up to step t, without the share of the initial weights.

    p(s) is proportional to exp(-rate (t - s)), where exp(-rate) is the decay.

    Attributes:
        decay: What remains of the average in a step.
        step: t, the steps that were averaged.
    """

    decay: float
    step: int

    @property
    def rate(self) -> float:
        """How fast a step is forgotten."""
        return -math.log(self.decay)

    @property
    def height(self) -> float:
        """p(t), which makes the integral 1."""
        return -self.rate / math.expm1(-self.rate * self.step)

    def dot(self, power: Power) -> float:
        """Return the inner product with a power profile that ends at the same step or before it.

        The integral of u^gamma exp(-x (1 - u)) over [0, 1] is Kummer's function
        M(1, gamma + 2, -x) / (gamma + 1).
        """
        forgotten = math.exp(-self.rate * (self.step - power.step))
        integral = hyp1f1(1.0, power.gamma + 2, -self.rate * power.step)
        return self.height * forgotten * float(integral)

    def square(self) -> float:
        """Return the inner product with itself."""
        return self.height**2 * -math.expm1(-2 * self.rate * self.step) / (2 * self.rate)


class Fit(NamedTuple):
    """The sum of snapshots that is closest to a wanted average.

    Attributes:
        coefficients: Of each snapshot.
        error: The distance of its profile from the wanted one, divided by the norm of that one.
    """

    coefficients: list[float]
    error: float


def fit(snapshots: Sequence[Power], wanted: Power | Exponential) -> Fit:
    """Return the coefficients that bring a sum of snapshots closest to a wanted average.

    They sum to 1. EDM2's do not: its networks ignore the size of their weights. Here the closest
    sum would shrink all weights (by 2.5 % for a decay of 0.999 over 4,000 steps, of 8 snapshots of
    two averages).

    Args:
        snapshots: Their profiles, none of which ends after the wanted one.
        wanted: Its profile.
    """
    products = np.array([[one.dot(other) for other in snapshots] for one in snapshots])
    targets = np.array([wanted.dot(snapshot) for snapshot in snapshots])
    # Of unit norm: the products of early and late snapshots differ by orders of magnitude.
    norms = np.sqrt(np.diagonal(products))
    constraint = 1 / norms / np.linalg.norm(1 / norms)
    # With a Lagrange multiplier for the sum.
    system = np.block(
        [[products / np.outer(norms, norms), constraint[:, None]], [constraint, np.zeros(1)]]
    )
    right = np.append(targets / norms, 1 / np.linalg.norm(1 / norms))
    found = np.linalg.lstsq(system, right, rcond=1e-14)[0][:-1] / norms
    square = wanted.square()
    rest = square - 2 * found @ targets + found @ products @ found
    return Fit([float(value) for value in found], math.sqrt(max(float(rest), 0.0) / square))
