"""The reference of the scores: statistics of real images' features, and the features of some.

They are measured in one pass that keeps no image, so the whole of ImageNet fits; or they are read
from a file that others published.

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

from mar import distributed
from mar.config import Config
from mar.data.spread import spread
from mar.evaluation.extractors import (
    Extractor,
    Features,
    Images,
    ReferenceSection,
    digest_tensors,
    do_share,
    extract,
)
from mar.files import seal, weights
from mar.files.downloads import check_file


INFO, STATISTICS = "reference.json", "statistics.safetensors"  # in the folder of a reference


class ReferenceInfo(Config):
    """What a reference was measured with, and the scores of held-out real images against it."""

    id: str = Field(description="digest of the extractor's weights and of all statistics")
    extractor: str = Field(description="the network whose features are compared")
    weights: str = Field(description="SHA-256 of its weights")
    source: str = Field(description="where the real images or their statistics come from")
    image_size: int = Field(description="side of the real images in pixels")
    num_reference: int | None = Field(
        description="real images measured; null for published statistics, which do not say"
    )
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
        """Describe a reference.

        Its id is a digest of all that scores depend on: scores with one id can be compared.
        """
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
        """Read the JSON file of `write`.

        Raises:
            ValueError: the file is missing or damaged, or does not describe a reference.
        """
        content = seal.read_json(path)
        try:
            return cls.model_validate(content)
        except ValueError as error:
            raise ValueError(f"{path} does not describe a reference: {error}") from None

    def write(self, path: Path) -> None:
        """Write the description as a JSON file."""
        seal.write_json(path, self.model_dump())

    def check(self, extractor: Extractor, *, height: int, width: int) -> None:
        """Check that images can be compared with the reference.

        Args:
            extractor: The network that will compute their features.
            height: Of the images, in pixels.
            width: Of the images, in pixels.

        Raises:
            ValueError: the images are of another size than the real ones, or the weights of the
                extractor are others than those that measured the real ones.
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
    """Mean and covariance of the features of images.

    Attributes:
        mean: Of each feature.
        covariance: The unbiased one.
        count: Of the images; None if the file that others published does not say.
    """

    mean: Float64[Tensor, " F"]
    covariance: Float64[Tensor, "F F"]
    count: int | None


class Moments:
    """Mean and covariance of features that come in batches, in float64.

    The batches are merged by the formula of Chan et al. (1979), which subtracts no large numbers
    of nearly the same size.
    """

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
        """Return the mean and the unbiased covariance of all features added so far."""
        return Statistics(self._mean, self._scatter / (self.count - 1), self.count)


@dataclass(frozen=True)
class Reference:
    """What the features of generated images are compared with.

    Attributes:
        statistics: Of the features of all real images, for the Frechet distance.
        features: Of some real images, for KID, precision and recall; empty if a published file has
            statistics without images.
        source: "training split", or the name of the published file.
    """

    statistics: Statistics
    features: Float32[Tensor, "K F"]
    source: str

    def digest(self) -> str:
        """Return the SHA-256 of the statistics and the features, in hexadecimal."""
        return digest_tensors(self._tensors())

    def save(self, path: Path) -> None:
        """Write the reference as one safetensors file."""
        description = {"count": self.statistics.count, "source": self.source}
        weights.write_tensors(path, self._tensors(), description)

    @classmethod
    def load(cls, path: Path) -> "Reference":
        """Read the file of `save`.

        Raises:
            ValueError: the file is missing or damaged, or does not hold a reference.
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
) -> Reference | None:
    """Measure the training images, or read the published statistics that the config names.

    Several processes share the work; the main one alone returns the reference, others None.

    Args:
        config: Section `reference` of `params.yaml`.
        extractor: The network that computes features.
        images: The training split; not read where published statistics take its place.
        device: Where the network works.
        workers: Processes that read images.
        base: The folder that a relative path of the published statistics starts from.

    Raises:
        ValueError: the published file is missing, has another digest than the config says, or is
            of other features or image sizes.
    """
    path, file = find_published(config, base), config.statistics_file
    if path is not None and file is not None:
        check_file(path, file.sha256, key="reference.statistics")
        published = read_published(path, width=file.width, image_size=images.image_size)
        kept = published.keep(config.num_features)
        batches = extract(extractor, kept, name=path.name, device=device, workers=0)
        if not distributed.is_main():
            do_share(batches)
            return None
        features = [torch.empty(0, file.width), *(batch.features for batch in batches)]
        return Reference(published.statistics, torch.cat(features), path.name)
    batches = extract(extractor, images, name="training split", device=device, workers=workers)
    if not distributed.is_main():
        do_share(batches)
        return None
    return summarise(batches, count=len(images), num_features=config.num_features)


def find_published(config: ReferenceSection, base: Path) -> Path | None:
    """Return the path of the published statistics that a section names, None if it names none."""
    file = config.statistics_file
    return None if file is None else base / Path(file.path).expanduser()


def has_images(statistics: Path) -> bool:
    """Return whether a file of published statistics exists and holds images too, as KID needs."""
    try:
        with np.load(statistics, allow_pickle=False) as file:
            return "arr_0" in file.files
    except (ValueError, OSError, AttributeError, zipfile.BadZipFile):
        return False


def summarise(batches: Iterable[Features], *, count: int, num_features: int) -> Reference:
    """Return the statistics of the features of all images, and the features of some.

    Args:
        batches: The features, in the order of the images.
        count: Of all images.
        num_features: Of images whose features are kept, evenly spread over all of them.
    """
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
    """Statistics that others measured, and some of their images.

    Attributes:
        statistics: Of the features of their images.
        images: Some of the images, uint8 (N, S, S, 3); N is 0 if the file holds none.
    """

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
        """Return the same statistics with only `wanted` of the images, evenly spread."""
        return PublishedStatistics(self.statistics, self.images[spread(len(self), wanted).numpy()])


def read_published(path: Path, *, width: int, image_size: int) -> PublishedStatistics:
    """Read the statistics mu and sigma, and images (arr_0) if there are any, from an .npz of ADM.

    Args:
        path: The file.
        width: Features that the extractor has.
        image_size: The side of the images to be scored, in pixels.

    Raises:
        ValueError: the file lacks mu or sigma, or they are of another number of features, or its
            images are of another size.
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
