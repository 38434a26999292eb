"""The reference of the scores: statistics of real images' features, and the features of some.

They are measured in one pass that keeps no image, so the whole of ImageNet fits; or they are read
from a file that others published.

Shapes: B images, K images whose features are kept, F features.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float32
from pydantic import Field
from torch import Tensor

from mar import distributed
from mar.config import Config
from mar.data.manifest import Split
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
from mar.evaluation.published import find_published, read_published
from mar.evaluation.statistics import Moments, Statistics
from mar.files import seal, weights
from mar.files.downloads import check_file


INFO, STATISTICS = "reference.json", "statistics.safetensors"  # in the folder of a reference
SOURCES: dict[Split, str] = {"train": "training split", "held_out": "held-out split"}


class ReferenceInfo(Config):
    """What a reference was measured with, and the scores of held-out real images against it."""

    id: str = Field(
        description="what was measured, how many images of which size, by which extractor, and a "
        "digest of its weights and of all statistics"
    )
    extractor: str = Field(description="the network whose features are compared")
    weights: str = Field(description="SHA-256 of its weights")
    source: str = Field(description="where the real images or their statistics come from")
    image_size: int = Field(description="side of the real images in pixels")
    num_reference: int | None = Field(
        description="real images measured; null for published statistics, which do not say"
    )
    num_features: int = Field(description="real images whose features are kept")
    class_counts: list[int] | None = Field(
        description="real images of each class; null for published statistics"
    )
    num_held_out: int = Field(description="real images that were held out, and are scored")
    held_out: dict[str, float] = Field(description="their scores; none if they are the reference")

    @classmethod
    def describe(
        cls,
        extractor: Extractor,
        reference: "Reference",
        image_size: int,
        class_counts: list[int] | None,
    ) -> "ReferenceInfo":
        """Describe a reference.

        Its id ends with a digest of all that scores depend on: scores with one id can be compared.
        """
        weights = extractor.digest()
        content = f"{extractor.kind} {weights} {reference.digest()}"
        count = reference.statistics.count
        parts = [
            re.sub(r"[^\w.]+", "_", reference.source),
            "unknown_count" if count is None else str(count),
            f"{image_size}px",
            extractor.kind,
            hashlib.sha256(content.encode()).hexdigest()[:12],
        ]
        return cls(
            id="-".join(parts),
            extractor=extractor.kind,
            weights=weights,
            source=reference.source,
            image_size=image_size,
            num_reference=reference.statistics.count,
            num_features=len(reference.features),
            class_counts=class_counts,
            num_held_out=0,
            held_out={},
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
class Reference:
    """What the features of generated images are compared with.

    Attributes:
        statistics: Of the features of all real images, for the Frechet distance.
        features: Of some real images, for KID, precision and recall; empty if a published file has
            statistics without images.
        source: The split, or the name of the published file.
        spatial: Of their spatial features, for sFID; None if they are not known.
    """

    statistics: Statistics
    features: Float32[Tensor, "K F"]
    source: str
    spatial: Statistics | None = None

    @property
    def width(self) -> int:
        """The number of features."""
        return len(self.statistics.mean)

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
        count = description["count"]
        statistics = Statistics(tensors["mean"], tensors["covariance"], count)
        spatial = None
        if "spatial_mean" in tensors:
            spatial = Statistics(tensors["spatial_mean"], tensors["spatial_covariance"], count)
        return cls(statistics, tensors["features"], description["source"], spatial)

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {
            "mean": self.statistics.mean,
            "covariance": self.statistics.covariance,
            "features": self.features,
        }
        if self.spatial is not None:
            tensors["spatial_mean"] = self.spatial.mean
            tensors["spatial_covariance"] = self.spatial.covariance
        return tensors


def measure(
    config: ReferenceSection,
    extractor: Extractor,
    images: Images,
    *,
    device: torch.device,
    workers: int,
    base: Path = Path(),
) -> Reference | None:
    """Measure a split of the images, or read the published statistics that the config names.

    Several processes share the work; the main one alone returns the reference, others None.

    Args:
        config: Section `reference` of `params.yaml`.
        extractor: The network that computes features.
        images: The split that the config names; not read where published statistics take its place.
        device: Where the network works.
        workers: Processes that read images.
        base: The folder that a relative path of the published statistics starts from.

    Raises:
        ValueError: the split has fewer than two images; or the published file is missing, has
            another digest than the config says, or is of other features or image sizes.
    """
    path, file = find_published(config, base), config.statistics_file
    if path is not None and file is not None:
        check_file(path, file.sha256, key="reference.statistics")
        published = read_published(path, file, image_size=images.image_size)
        kept = published.keep(config.num_features)
        batches = extract(extractor, kept, name=path.name, device=device, workers=0)
        if not distributed.is_main():
            do_share(batches)
            return None
        features = [torch.empty(0, file.width), *(batch.features for batch in batches)]
        return Reference(published.statistics, torch.cat(features), path.name, published.spatial)
    source = SOURCES[config.split or "train"]
    if len(images) < 2:
        raise ValueError(
            f"reference.split: the {source} has {len(images)} images, and a covariance needs 2 or "
            "more"
        )
    batches = extract(extractor, images, name=source, device=device, workers=workers)
    if not distributed.is_main():
        do_share(batches)
        return None
    return summarise(batches, count=len(images), num_features=config.num_features, source=source)


def summarise(
    batches: Iterable[Features],
    *,
    count: int,
    num_features: int,
    source: str = SOURCES["train"],
) -> Reference:
    """Return the statistics of the features of all images, and the features of some.

    Args:
        batches: The features, in the order of the images.
        count: Of all images.
        num_features: Of images whose features are kept, evenly spread over all of them.
        source: What the images are.
    """
    kept = spread(count, num_features)
    moments: Moments | None = None
    spatial: Moments | None = None
    parts: list[Tensor] = []
    for batch, _, layout in batches:
        moments = moments or Moments(batch.shape[1])
        inside = (kept >= moments.count) & (kept < moments.count + len(batch))
        parts.append(batch[kept[inside] - moments.count])
        moments.update(batch)
        if layout is not None:
            spatial = spatial or Moments(layout.shape[1])
            spatial.update(layout)
    assert moments is not None
    assert moments.count == count
    return Reference(
        moments.statistics(),
        torch.cat(parts),
        source,
        None if spatial is None else spatial.statistics(),
    )
