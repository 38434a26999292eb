"""Feature extractors, whose features the scores compare: what all of them share.

A new one is a file with its section and a line in `mar.evaluation.extractor_registry`.

Shapes: B images, S their side in pixels, F features, K classes, P spatial features.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from pydantic import Field, field_validator
from torch import Tensor, nn
from tqdm import tqdm

from mar import distributed
from mar.config import Config
from mar.data.manifest import Split
from mar.data.workers import map_chunks, ranges
from mar.evaluation.score_names import ScoreNames


BATCH = 64  # images; torch-fidelity's default


class Features(NamedTuple):
    """Outputs of an extractor; logits only if it has classes, spatial features only of Inception.

    50,000 images of Inception take 1 GB (20 kB each), and scoring them another.
    """

    features: Float[Tensor, "B F"]
    logits: Float[Tensor, "B K"] | None = None
    spatial: Float[Tensor, "B P"] | None = None


@runtime_checkable
class Images(Protocol):
    """A set of images of one size."""

    @property
    def image_size(self) -> int:
        """The side of an image in pixels."""
        ...

    def __len__(self) -> int: ...

    def stack(self, indices: list[int]) -> UInt8[Tensor, "B 3 S S"]:
        """Return some of the images as one tensor."""
        ...


@dataclass(frozen=True)
class Extractor:
    """A feature extractor.

    Attributes:
        kind: Which one, as the section says; `untrained` is a classifier of a single class.
        module: Takes uint8 images and returns features and, where it has them, logits and spatial
            features.
        names: What the scores by it are called.
    """

    kind: str
    module: nn.Module
    names: ScoreNames

    def digest(self) -> str:
        """Return the SHA-256 of all weights, in hexadecimal."""
        return digest_tensors(self.module.state_dict())


class StatisticsFile(NamedTuple):
    """A file of statistics that others measured, and the number of features in it.

    Attributes:
        path: Where it is.
        sha256: Its digest, if it is to be compared.
        width: Features.
        spatial_width: Spatial features; None where the extractor has none.
    """

    path: str
    sha256: str | None
    width: int
    spatial_width: int | None = None


class ReferenceSection(Config, ABC):
    """Section `reference` of `params.yaml`, whatever the extractor.

    Attributes:
        takes_statistics: Whether a file of statistics can take the place of images.
    """

    takes_statistics: ClassVar[bool] = False

    split: Split | None = Field(
        description="the images to compare with: train or held_out; null where a file of "
        "statistics takes their place"
    )
    num_features: int = Field(
        ge=2, description="real images whose features are kept for KID, precision and recall"
    )

    @field_validator("split")
    @classmethod
    def _check_split(cls, value: Split | None) -> Split | None:
        if value is None and not cls.takes_statistics:
            raise ValueError("must be train or held_out")
        return value

    @property
    def statistics_file(self) -> StatisticsFile | None:
        """The published statistics to compare with, instead of those of a split."""
        return None

    @abstractmethod
    def load(self, folder: Path, *, base: Path = Path()) -> Extractor:
        """Return the extractor, in evaluation mode.

        Args:
            folder: Holds what the stage `reference` trained, if the extractor is trained there.
            base: The folder that a relative path of a weight file starts from.

        Raises:
            ValueError: a file is missing or not what it should be, or a download fails.
        """

    def one_class_warning(self, num_classes: int) -> str | None:
        """Return a warning if the extractor cannot be trained on so few classes, else None."""
        return None


def load(section: ReferenceSection, folder: Path, *, base: Path = Path()) -> Extractor:
    """Load an extractor, which the main process may have to download.

    Args:
        section: Which extractor.
        folder: Holds what the stage `reference` trained.
        base: The folder that a relative path of a weight file starts from.

    Raises:
        ValueError: a file is missing or not what it should be, or a download fails.
    """
    return distributed.main_first(lambda: section.load(folder, base=base))


def extract(
    extractor: Extractor, images: Images, *, name: str, device: torch.device, workers: int
) -> Iterator[Features]:
    """Move the extractor to a device; yield its outputs for the images, in batches, on the CPU.

    Each of several processes works on every n-th batch, and all of them yield all batches, in the
    order of the images: so the outputs do not depend on how many they are.

    Args:
        extractor: The network.
        images: The images.
        name: What they are called on the progress bar.
        device: Where the network works.
        workers: Processes that read images.

    Raises:
        ValueError: features are not finite.
    """
    extractor.module.to(device)
    chunks = ranges(len(images), BATCH)
    mine = distributed.share(chunks)
    found = (
        extract_batch(extractor, batch, device=device, first=chunk[0])
        for chunk, batch in zip(mine, map_chunks(images.stack, mine, workers), strict=True)
    )
    yield from tqdm(
        distributed.interleave(found, len(chunks)),
        total=len(chunks),
        desc=f"features of the {name}",
        unit="batch",
        disable=not distributed.is_main(),
    )


@torch.no_grad()
def extract_batch(
    extractor: Extractor, images: UInt8[Tensor, "B 3 S S"], *, device: torch.device, first: int
) -> Features:
    """Return an extractor's outputs for images, on the CPU.

    In full float32: on a GPU, torch would round the inputs of convolutions to 10 bits (TF32).

    Args:
        extractor: The network.
        images: The images.
        device: Where the network is.
        first: Number of the first image, for the message.

    Raises:
        ValueError: features are not finite.
    """
    exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    with exact:
        found = Features(*(output.cpu() for output in extractor.module(images.to(device))))
    if not all(output.isfinite().all() for output in found if output is not None):
        raise ValueError(
            f"the extractor {extractor.kind} returned nan or infinity for images from {first} on"
        )
    return found


def do_share(batches: Iterable[Features]) -> None:
    """Work on this process's share of the batches, which another process makes use of."""
    for _ in batches:
        pass


def gather(batches: Iterable[Features], count: int) -> Features:
    """Join batches of the features of `count` images, without holding any twice."""
    whole: list[Tensor | None] = []
    first = 0
    for batch in batches:
        whole = whole or [
            None if it is None else it.new_empty(count, *it.shape[1:]) for it in batch
        ]
        for into, part in zip(whole, batch, strict=True):
            if into is not None and part is not None:
                into[first : first + len(part)] = part
        first += len(batch.features)
    assert first == count
    features, *others = whole
    assert features is not None
    return Features(features, *others)


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of named tensors, in hexadecimal; their order does not matter."""
    content = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        content.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        content.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()
