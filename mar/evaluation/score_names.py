"""What scores are called: by their features, their spread, and the images that are too few.

The plain names (`fid`, `kid`, ...) belong to Inception: no other number is called FID. A distance
of few images is larger than that of many of the same kind, so the count is in its name:
`fid_500`. Distances of one name can be compared. Nothing here needs torch.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple


ENOUGH = 2048  # images: Inception's features, whose covariance fewer images cannot have
# Images for each feature, below which a Frechet distance is much too large. The authors of the FID
# advise at least 10,000 images for Inception's 2,048 features (github.com/bioinf-jku/TTUR).
PER_FEATURE = 5
SPREAD = "_std"  # ends the name of a standard deviation
PARTS = re.compile(r"(?P<base>\w+?)(?:_(?P<count>\d+))?(?P<spread>_std)?")


class ScoreNames(NamedTuple):
    """What the scores by an extractor are called; None for a score that has no meaning with it."""

    fid: str
    kid: str
    mmd: str
    precision: str
    recall: str
    rfid: str
    sfid: str | None = None
    inception_score: str | None = None
    accuracy: str | None = None  # where the extractor's classes are those of the data

    @property
    def fid_infinity(self) -> str:
        """The Frechet distance, extrapolated to infinitely many images."""
        return f"{self.fid}_inf"


class Parts(NamedTuple):
    """A score's name in parts: `fid_500_std` is the spread of the `fid` of 500 images."""

    base: str
    num_images: int | None
    is_spread: bool


def is_few(count: int, width: int) -> bool:
    """Whether a Frechet distance of so many images with so many features needs them in its name."""
    return count < max(ENOUGH, width)


def with_count(name: str, count: int, width: int) -> str:
    """Return the name of a Frechet distance, with the count of its images if they are few.

    Args:
        name: What it is called for many images.
        count: How many images it is of.
        width: How many features an image has.
    """
    return f"{name}_{count}" if is_few(count, width) else name


def parts(name: str) -> Parts:
    """Return the parts of a score's name."""
    match = PARTS.fullmatch(name)
    if match is None:
        return Parts(name, None, False)
    count = match["count"]
    return Parts(match["base"], None if count is None else int(count), match["spread"] is not None)


def find(scores: Mapping[str, float], base: str, *, spread: bool = False) -> float | None:
    """Return a score by its name without the count, or its spread; None where there is none."""
    for name, value in scores.items():
        if parts(name)[::2] == (base, spread):
            return value
    return None


def bases(*groups: Iterable[str]) -> list[str]:
    """Return the names of all scores of several sets, without counts and spreads, each once."""
    return list(dict.fromkeys(parts(name).base for group in groups for name in group))


def count_warnings(name: str, count: int, width: int) -> list[str]:
    """Return warnings if a Frechet distance is of too few images for its features.

    Args:
        name: What the distance is called for many images.
        count: How many images it is of.
        width: How many features an image has.
    """
    if is_few(count, width):
        least = max(ENOUGH, width)
        return [
            f"{with_count(name, count, width)} is too large, as {count} images are too few for the "
            f"covariance of {width} features; its name has the count, as it is comparable only "
            f"with that of as many images (from {least} on it is called {name})"
        ]
    if count < PER_FEATURE * width:
        return [
            f"{name} is too large, as {count} images are too few for the covariance of {width} "
            "features; compare it only with that of as many images"
        ]
    return []
