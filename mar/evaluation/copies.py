"""Copies among generated images: of one another, and of training images.

What counts as a copy is set by real images, in an extractor's feature space:

- A near-duplicate lies closer to another generated image than all but 1 % of as many real images
  lie to another real one.
- A training copy lies closer to a training image than all but 1 % of real images that were held out
  (where none are, of training images to another one).

So 1 % of fresh real images would count as each, and a share well above that is a finding. An image
at the distance 0 always counts: also where more than 1 % of the real images are there twice, so
that fresh ones would count more often. Images whose features are equal, but which differ, count as
copies too: features see what they were trained to see.

Shapes: B generated images, K training images, H held-out images, F features.
"""

# torch has few types here:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from mar.evaluation.statistics import rows_at_a_time
from mar.files import seal


SCALE = "copies.json"  # in the folder of a reference
SHARE = 0.01  # of real images, which count as copies; ours


class Nearest(NamedTuple):
    """The nearest other image of each of some."""

    distances: Float32[Tensor, " B"]
    indices: Int64[Tensor, " B"]


@dataclass(frozen=True)
class CopyScale:
    """How near real images lie to others, by which copies among generated ones are told.

    Attributes:
        training_copy: The distance to a training image, up to which an image counts as its copy.
        basis: The real images whose distances these are: "held-out" or "training".
        between_real: The distances between each training image and its nearest other one, sorted.
    """

    training_copy: float
    basis: str
    between_real: list[float]

    @classmethod
    def measure(
        cls, training: Float32[Tensor, "K F"], held_out: Float32[Tensor, "H F"]
    ) -> "CopyScale":
        """Measure real images: at least two of training, and those held out, which may be none."""
        between = nearest_other(training).distances.sort().values
        found = nearest(held_out, training).distances if len(held_out) else between
        return cls(
            training_copy=_quantile(found, SHARE),
            basis="held-out" if len(held_out) else "training",
            between_real=between.tolist(),
        )

    def near_duplicate(self, count: int) -> float:
        """Return the distance up to which one of `count` images counts as a near-duplicate.

        Nearest neighbours are nearer among more images: the chance that one is within a small
        distance grows as their number. So the share of the real images is that much smaller or
        larger.
        """
        real = len(self.between_real)
        share = min(SHARE * (real - 1) / max(count - 1, 1), 1.0)
        return _quantile(torch.tensor(self.between_real), share)

    def write(self, path: Path) -> None:
        """Write it as one JSON file."""
        seal.write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> "CopyScale":
        """Read the file of `write`.

        Raises:
            ValueError: the file is missing or damaged.
        """
        return cls(**seal.read_json(path))


@dataclass(frozen=True)
class Copies:
    """The copies among generated images.

    Attributes:
        training: The nearest training image of each.
        others: The nearest other generated image of each.
        training_copy: The distance up to which the first counts as a copy.
        near_duplicate: The distance up to which the second does.
    """

    training: Nearest
    others: Nearest
    training_copy: float
    near_duplicate: float

    @classmethod
    def find(
        cls,
        features: Float32[Tensor, "B F"],
        training: Float32[Tensor, "K F"],
        scale: CopyScale,
    ) -> "Copies":
        """Find the copies among two or more images, of one another and of training images."""
        return cls(
            training=nearest(features, training),
            others=nearest_other(features),
            training_copy=scale.training_copy,
            near_duplicate=scale.near_duplicate(len(features)),
        )

    def shares(self) -> dict[str, float]:
        """Return the shares of images that are near-duplicates and training copies."""
        duplicates = self.others.distances <= self.near_duplicate
        copies = self.training.distances <= self.training_copy
        return {
            "near_duplicates": float(duplicates.double().mean()),
            "training_copies": float(copies.double().mean()),
        }


def nearest(features: Float32[Tensor, "B F"], others: Float32[Tensor, "K F"]) -> Nearest:
    """Return the nearest of other images for each image."""
    return _search(features, others, same=False)


def nearest_other(features: Float32[Tensor, "B F"]) -> Nearest:
    """Return the nearest other image of the same set for each image."""
    return _search(features, features, same=True)


def _search(
    features: Float32[Tensor, "B F"], others: Float32[Tensor, "K F"], *, same: bool
) -> Nearest:
    """Find neighbours by fast distances, which are rough for copies, then measure theirs exactly.

    Args:
        features: Of images.
        others: Among which their neighbours are.
        same: Whether both are the same set, in which no image is its own neighbour.
    """
    found: list[Tensor] = []
    for rows in torch.arange(len(features)).split(rows_at_a_time(len(others))):
        distances = torch.cdist(features[rows], others)
        if same:
            distances[torch.arange(len(rows)), rows] = torch.inf
        found.append(distances.argmin(dim=1))
    indices = torch.cat(found)
    return Nearest((features - others[indices]).norm(dim=1), indices)


def _quantile(distances: Float32[Tensor, " B"], share: float) -> float:
    """Return the distance below which a share of distances lies."""
    return float(torch.quantile(distances.double(), share))
