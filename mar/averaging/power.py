"""Averages of the weights over a training by a power of the step (EDM2, section 3.1).

After t steps the weights of step s have counted in proportion to s^gamma. Such an average widens as
the training goes on, and holds nothing of the initial weights. Its relative width is the standard
deviation of s under that profile, divided by t. (EDM2: Karras et al., "Analyzing and Improving the
Training Dynamics of Diffusion Models", arXiv 2312.02696.)
"""

import math
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from mar.config import Config


WIDEST = 1 / math.sqrt(12)  # gamma = 0: all steps count alike

# Up to WIDEST, rounded up.
RelativeWidth = Annotated[
    float, Field(ge=0.001, le=0.289, description="standard deviation, as a share of the training")
]


class AveragesConfig(Config):
    """Key `training.averages` of `params.yaml`: averages from which any other can be rebuilt."""

    widths: list[RelativeWidth] = Field(
        min_length=1, max_length=8, description="relative widths of the averages (EDM2: 0.05, 0.1)"
    )
    snapshots: int = Field(
        ge=2, le=1000, description="how often each is written, at even distances in the training"
    )
    dtype: Literal["float16", "float32"] = Field(
        description="in which they are written (EDM2: float16)"
    )


def exponent(width: float) -> float:
    """Return the gamma of an average of a relative width (EDM2, appendix C).

    The width is sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)), so gamma is the largest root of a
    cubic.
    """
    inverse = min(width, WIDEST) ** -2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return max(float(roots.real.max()), 0.0)


def decay(width: float, step: int) -> float:
    """Return how much of an average remains in a step, counted from 1 (EDM2, section 3.1).

    In the first step nothing does.
    """
    return (1 - 1 / step) ** (exponent(width) + 1)


def snapshot_steps(steps: int, count: int) -> list[int]:
    """Return after which steps of a training averages are written, the last one included."""
    return sorted({math.ceil(steps * number / count) for number in range(1, count + 1) if steps})
