"""Real images as the scores see them: the statistics of all of them, and the features of some.

They are measured in a stream, so the images may be the whole of ImageNet, or read from a file that
others published.

Shapes: B images, K images whose features are kept, F features, S side of an image in pixels.
"""
# torch.from_numpy has no types:
# pyright: reportUnknownMemberType=false

import hashlib
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Float64, UInt8
from pydantic import Field
from torch import Tensor

from mar.config import Config
from mar.data.spread import spread
from mar.evaluation.extractors import (
    Extractor,
    Features,
    Images,
    ReferenceSection,
    digest_tensors,
    extract,
)
from mar.files import seal, weights
from mar.files.downloads import check_file


INFO, STATISTICS = "reference.json", "statistics.safetensors"  # in the folder of a reference


class ReferenceInfo(Config):
    """What a reference is, and what real images that it does not contain score against it."""

    id: str = Field(description="digest of the extractor's weights and of all statistics")
    extractor: str = Field(description="the network whose features are compared")
    weights: str = Field(description="SHA-256 of its weights")
    source: str = Field(description="where the real images or their statistics come from")
    image_size: int = Field(description="side of the real images in pixels")
    num_reference: int | None = Field(description="real images measured; null: the file says not")
    num_features: int = Field(description="real images whose features are kept")
    num_held_out: int = Field(description="real images of the held-out split")
    held_out: dict[str, float] = Field(description="scores of the held-out split")

    @classmethod
    def describe(
        cls,
        extractor: Extractor,
        reference: "Reference",
        image_size: int,
        num_held_out: int,
        held_out: dict[str, float],
    ) -> "ReferenceInfo":
        """Return what a reference is; the id stands for all that scores against it depend on."""
        weights = extractor.digest()
        content = f"{extractor.kind} {weights} {reference.digest()}"
        return cls(
            id=hashlib.sha256(content.encode()).hexdigest()[:12],
            extractor=extractor.kind,
            weights=weights,
            source=reference.source,
            image_size=image_size,
            num_reference=reference.statistics.count,
            num_features=len(reference.features),
            num_held_out=num_held_out,
            held_out=held_out,
        )

    @classmethod
    def read(cls, path: Path) -> "ReferenceInfo":
        """Read what `write` wrote.

        Raises:
            ValueError: the file is missing, damaged or of something else.
        """
        content = seal.read_json(path)
        try:
            return cls.model_validate(content)
        except ValueError as error:
            raise ValueError(f"{path} does not describe real images: {error}") from None

    def write(self, path: Path) -> None:
        """Write it as one JSON file."""
        seal.write_json(path, self.model_dump())

    def check(self, extractor: Extractor, *, height: int, width: int) -> None:
        """Refuse to compare images of another size, or by another network.

        Raises:
            ValueError: one of them differs.
        """
        if (height, width) != (self.image_size, self.image_size):
            raise ValueError(
                f"samples have {height}x{width} pixels, "
                f"the real images {self.image_size}x{self.image_size}"
            )
        if (found := extractor.digest()) != self.weights:
            raise ValueError(
                f"the weights of {extractor.kind} have the SHA-256 {found}, "
                f"but {self.weights} when the real images were measured"
            )


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of the features of `count` images (None: not known)."""

    mean: Float64[Tensor, " F"]
    covariance: Float64[Tensor, "F F"]
    count: int | None


class Moments:
    """Mean and covariance of a stream, in float64, without cancellation (Chan et al., 1979)."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self._mean = torch.zeros(width, dtype=torch.float64)
        self._scatter = torch.zeros(width, width, dtype=torch.float64)

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
        """Return the mean and the unbiased covariance of all so far."""
        return Statistics(self._mean, self._scatter / (self.count - 1), self.count)


@dataclass(frozen=True)
class Reference:
    """Real images as the scores see them.

    Attributes:
        statistics: Of all images.
        features: Of some of them, for KID, precision and recall; of none where a published file has
            no images.
        source: Where the images, or their statistics, come from.
    """

    statistics: Statistics
    features: Float32[Tensor, "K F"]
    source: str

    def digest(self) -> str:
        """Return the SHA-256 of all its numbers."""
        return digest_tensors(self._tensors())

    def save(self, path: Path) -> None:
        """Write all of it as one file."""
        description = {"count": self.statistics.count, "source": self.source}
        weights.write_tensors(path, self._tensors(), description)

    @classmethod
    def load(cls, path: Path) -> "Reference":
        """Read what `save` wrote.

        Raises:
            ValueError: the file is missing, damaged or of something else.
        """
        tensors, description = weights.load(path)
        if description.keys() != {"count", "source"}:
            raise ValueError(f"{path} does not hold the statistics of real images")
        statistics = Statistics(tensors["mean"], tensors["covariance"], description["count"])
        return cls(statistics, tensors["features"], description["source"])

    def _tensors(self) -> dict[str, Tensor]:
        return {
            "mean": self.statistics.mean,
            "covariance": self.statistics.covariance,
            "features": self.features,
        }


def measure(
    config: ReferenceSection,
    extractor: Extractor,
    images: Images,
    *,
    device: torch.device,
    workers: int,
    base: Path = Path(),
) -> Reference:
    """Measure the training images, or read the published statistics that the config names.

    A relative path of the statistics begins at `base`.

    Raises:
        ValueError: the published file is missing, another one, or does not fit.
    """
    path, file = find_published(config, base), config.statistics_file
    if path is not None and file is not None:
        check_file(path, file.sha256, key="reference.statistics")
        published = read_published(path, width=file.width, image_size=images.image_size)
        kept = published.keep(config.num_features)
        batches = extract(extractor, kept, name=path.name, device=device, workers=0)
        features = [torch.empty(0, file.width), *(batch.features for batch in batches)]
        return Reference(published.statistics, torch.cat(features), path.name)
    batches = extract(extractor, images, name="training split", device=device, workers=workers)
    return summarise(batches, count=len(images), num_features=config.num_features)


def find_published(config: ReferenceSection, base: Path) -> Path | None:
    """Return where the published statistics are that a section names, if it names any."""
    file = config.statistics_file
    return None if file is None else base / Path(file.path).expanduser()


def has_images(statistics: Path) -> bool:
    """Return whether published statistics are there and have images, which KID needs."""
    try:
        with np.load(statistics, allow_pickle=False) as file:
            return "arr_0" in file.files
    except (ValueError, OSError, AttributeError, zipfile.BadZipFile):
        return False


def summarise(batches: Iterable[Features], *, count: int, num_features: int) -> Reference:
    """Measure the features of `count` images and keep those of `num_features`, evenly spread."""
    kept = spread(count, num_features)
    moments: Moments | None = None
    parts: list[Tensor] = []
    for batch, _ in batches:
        moments = moments or Moments(batch.shape[1])
        inside = (kept >= moments.count) & (kept < moments.count + len(batch))
        parts.append(batch[kept[inside] - moments.count])
        moments.update(batch)
    assert moments is not None
    assert moments.count == count
    return Reference(moments.statistics(), torch.cat(parts), "training split")


@dataclass(frozen=True)
class PublishedStatistics:
    """Statistics that others measured, and images of theirs: uint8 (N, S, S, 3), perhaps none."""

    statistics: Statistics
    images: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_size(self) -> int:
        """The side of an image in pixels."""
        return self.images.shape[1]

    def stack(self, indices: list[int]) -> UInt8[Tensor, "B 3 S S"]:
        """Return some of the images as one tensor."""
        return torch.from_numpy(self.images[indices]).permute(0, 3, 1, 2)

    def keep(self, wanted: int) -> "PublishedStatistics":
        """Leave `wanted` of the images, evenly spread."""
        return PublishedStatistics(self.statistics, self.images[spread(len(self), wanted).numpy()])


def read_published(path: Path, *, width: int, image_size: int) -> PublishedStatistics:
    """Read mu, sigma and, where there are, images (arr_0) from an .npz, as ADM publishes them.

    Raises:
        ValueError: the file is of another layout, of other features or of images of another size.
    """
    images = np.zeros((0, image_size, image_size, 3), np.uint8)
    try:
        with np.load(path, allow_pickle=False) as file:
            mean, covariance = (torch.from_numpy(file[name]).double() for name in ("mu", "sigma"))
            images = file["arr_0"] if "arr_0" in file.files else images
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"reference.statistics: {path} is no .npz with mu and sigma: {error}"
        ) from None
    shapes = {"mu": mean.shape, "sigma": covariance.shape, "arr_0": images.shape[1:]}
    expected = {"mu": (width,), "sigma": (width, width), "arr_0": (image_size, image_size, 3)}
    for name, shape in expected.items():
        if shapes[name] != shape:
            found = tuple(shapes[name])
            raise ValueError(f"reference.statistics: {path} has {name} {found}, expected {shape}")
    return PublishedStatistics(Statistics(mean, covariance, None), images)
