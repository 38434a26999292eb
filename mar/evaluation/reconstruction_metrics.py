"""How well a tokenizer reconstructs images: PSNR, SSIM, rFID and other metrics of image pairs.

Two numbers are called rFID. Against the originals themselves it measures what the tokenizer loses;
against the training split it is the FID of a perfect generator (KL-16: 0.53 and 1.22).

Each metric measures a batch, which any of several processes can do, and then adds up what was
measured, in the order of the batches: so the numbers do not depend on who measured what.

Shapes: B batch, H W an image, S the side of a square image, all in pixels; F features.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mar.evaluation.extractors import Extractor, extract_batch
from mar.evaluation.score_names import count_warnings, with_count
from mar.evaluation.statistics import Moments, Statistics, frechet_distance


@runtime_checkable
class PairMeasure(Protocol):
    """A metric of pairs of originals and reconstructions, which come in batches."""

    def measure(
        self,
        originals: UInt8[Tensor, "B 3 H W"],
        reconstructions: UInt8[Tensor, "B 3 H W"],
        first: int,
    ) -> Any:
        """Return what a batch contributes; nothing else changes.

        Args:
            originals: Some images.
            reconstructions: Theirs.
            first: The number of the first image, for messages.
        """
        ...

    def add(self, measured: Any) -> None:
        """Add what a batch contributes."""
        ...

    def compute(self) -> dict[str, float]:
        """Return the numbers by their names."""
        ...


class Measured(NamedTuple):
    """What a batch contributes to the scores.

    Attributes:
        num_images: How many images it has.
        values: How many values they have, three for each pixel.
        squared_error: The sum of the squared errors of the values, exact.
        ssim: The sum of the SSIM of the images.
        others: What each further metric measured.
    """

    num_images: int
    values: int
    squared_error: int
    ssim: float
    others: list[Any]


class PairScores:
    """PSNR, SSIM and further metrics of pairs of originals and reconstructions."""

    def __init__(self, measures: Sequence[PairMeasure] = ()) -> None:
        self._measures = measures
        self._count = self._values = self._squared_error = 0
        self._ssim = 0.0

    def measure(
        self,
        originals: UInt8[Tensor, "B 3 H W"],
        reconstructions: UInt8[Tensor, "B 3 H W"],
        first: int,
    ) -> Measured:
        """Return what a batch contributes; `first` is the number of its first image."""
        # Seconds, as it imports transformers where that is installed.
        from torchmetrics.functional.image import structural_similarity_index_measure

        error = originals.int() - reconstructions.int()
        ssim = structural_similarity_index_measure(
            reconstructions.float(), originals.float(), data_range=255.0, reduction="none"
        )
        assert isinstance(ssim, Tensor)  # by its type it could be a pair, if it were asked for one
        return Measured(
            num_images=len(originals),
            values=error.numel(),
            squared_error=int(error.square().sum()),
            ssim=float(ssim.double().sum()),
            others=[it.measure(originals, reconstructions, first) for it in self._measures],
        )

    def add(self, measured: Measured) -> None:
        """Add what a batch contributes."""
        self._count += measured.num_images
        self._values += measured.values
        self._squared_error += measured.squared_error
        self._ssim += measured.ssim
        for measure, part in zip(self._measures, measured.others, strict=True):
            measure.add(part)

    def compute(self) -> dict[str, float]:
        """Return the scores by their names; without images there are none.

        `psnr` in dB is that of the mean squared error over all images, and left out if there is no
        error; `ssim` is the mean over images.
        """
        if not self._count:
            return {}
        scores: dict[str, float] = {}
        if self._squared_error:
            scores["psnr"] = 10 * math.log10(255**2 * self._values / self._squared_error)
        scores["ssim"] = self._ssim / self._count
        for measure in self._measures:
            scores |= measure.compute()
        return {name: value for name, value in scores.items() if math.isfinite(value)}


def score(
    pairs: Iterable[tuple[UInt8[Tensor, "_ 3 H W"], UInt8[Tensor, "_ 3 H W"]]],
    measures: Sequence[PairMeasure] = (),
) -> dict[str, float]:
    """Return the `PairScores` of originals and reconstructions, in batches of any sizes."""
    scores, first = PairScores(measures), 0
    for originals, reconstructions in pairs:
        scores.add(scores.measure(originals, reconstructions, first))
        first += len(originals)
    return scores.compute()


def difference(
    originals: UInt8[Tensor, "B 3 H W"], reconstructions: UInt8[Tensor, "B 3 H W"], *, gain: int
) -> UInt8[Tensor, "B 3 H W"]:
    """Return differences times `gain`, around a mid-grey of 128."""
    return (128 + gain * (reconstructions.float() - originals.float())).clamp(0, 255).byte()


class ReconstructionDistance:
    """Frechet distances of reconstructions, in a stream of pairs (a `PairMeasure`)."""

    def __init__(self, extractor: Extractor, train: Statistics, device: torch.device) -> None:
        """Move the extractor to a device; `train` are the statistics of the training split."""
        extractor.module.to(device)
        self._extractor, self._device = extractor, device
        self._train = train
        width = len(train.mean)
        self._originals, self._reconstructions = Moments(width), Moments(width)

    def measure(
        self,
        originals: UInt8[Tensor, "B 3 S S"],
        reconstructions: UInt8[Tensor, "B 3 S S"],
        first: int,
    ) -> tuple[Float[Tensor, "B F"], Float[Tensor, "B F"]]:
        """Return the features of a batch; `first` is the number of its first image.

        Raises:
            ValueError: features are not finite.
        """
        found, others = (
            extract_batch(self._extractor, images, device=self._device, first=first)
            for images in (originals, reconstructions)
        )
        return found.features, others.features

    def add(self, measured: tuple[Float[Tensor, "B F"], Float[Tensor, "B F"]]) -> None:
        """Add the features of a batch."""
        originals, reconstructions = measured
        self._originals.update(originals)
        self._reconstructions.update(reconstructions)

    def compute(self) -> dict[str, float]:
        """Return both distances by their names, or nothing for fewer than two images."""
        if self._originals.count < 2:
            return {}
        name = self._extractor.names.rfid
        found = self._reconstructions.statistics()
        distances = {
            f"{name}_held_out": frechet_distance(found, self._originals.statistics()),
            f"{name}_train": frechet_distance(found, self._train),
        }
        count, width = self._originals.count, len(self._train.mean)
        return {with_count(key, count, width): value for key, value in distances.items()}

    def count_warnings(self) -> list[str]:
        """Return warnings if there are too few images for their features."""
        count, width = self._originals.count, len(self._train.mean)
        return count_warnings(self._extractor.names.rfid, count, width) if count else []
