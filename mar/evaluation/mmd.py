"""The maximum mean discrepancy of two sets of features, with a Gaussian kernel.

As CMMD (Jayasumana et al., 2024, arXiv 2401.09603) it assumes no normal distribution and bears
small samples, but by any extractor instead of CLIP, so its numbers are not those of CMMD: the
estimate is unbiased (Gretton et al., 2012, equation 3), and the kernel is as wide as the median
distance of two real images (their section 8), for features have no scale in common.

Shapes: N images, M others, F features.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from mar.data.spread import spread
from mar.evaluation.statistics import ROWS
from mar.evaluation.uncertainty import jackknife_spread
from mar.seeds import make_rng


SCALE = 1000.0  # as CMMD is multiplied, so that it is read more easily
MEDIAN_OF = 1000  # real images, evenly spread, whose distances tell the width of the kernel


class Discrepancy(NamedTuple):
    """A discrepancy of images.

    Attributes:
        value: The squared discrepancy times `SCALE`; around 0 for images of one distribution.
        spread: Its standard deviation over other samples of as many images, by the jackknife, which
            rather overstates it; none for two images.
    """

    value: float
    spread: float | None


def mmd(found: Float32[Tensor, "N F"], real: Float32[Tensor, "M F"], *, seed: int) -> Discrepancy:
    """Return the discrepancy of generated images from real ones.

    Of more images than real ones, as many are drawn: so its time is bounded.

    Args:
        found: Features of generated images; at least two.
        real: Features of real ones; at least two.
        seed: Of the draw. Images at equal distances would be of some classes only, as samples
            cycle through the classes.
    """
    if len(found) > len(real):
        order = torch.randperm(len(found), generator=make_rng("mmd", seed))
        found = found[order[: len(real)]]
    width = _median_distance(real)
    n, m = len(found), len(real)
    inside = _kernel_sums(found, found, width) - 1  # without an image and itself
    across = _kernel_sums(found, real, width)
    real_inside = (_kernel_sums(real, real, width).sum() - m) / (m * (m - 1))
    value = float(inside.sum() / (n * (n - 1)) + real_inside - 2 * across.sum() / (n * m))
    if n == 2:
        return Discrepancy(SCALE * value, None)
    # The discrepancy without one image, for each image: of pairs, both of its places go.
    without = (inside.sum() - 2 * inside) / ((n - 1) * (n - 2))
    without -= 2 * (across.sum() - across) / ((n - 1) * m)
    return Discrepancy(SCALE * value, SCALE * jackknife_spread(without))


def _median_distance(real: Float32[Tensor, "M F"]) -> float:
    some = real[spread(len(real), MEDIAN_OF)].double()
    found = float(torch.pdist(some).median())
    return found if found > 0 else 1.0  # all the same: any width tells those that differ


def _kernel_sums(
    first: Float32[Tensor, "N F"], second: Float32[Tensor, "M F"], width: float
) -> Float64[Tensor, " N"]:
    """Return the sum of exp(-d^2 / (2 width^2)) over all others, for each image."""
    sums: list[Tensor] = []
    others = second.double()
    for part in torch.split(first.double(), ROWS):
        kernel = torch.cdist(part, others, compute_mode="use_mm_for_euclid_dist")
        sums.append(kernel.square_().mul_(-0.5 / width**2).exp_().sum(dim=1))
    return torch.cat(sums)
