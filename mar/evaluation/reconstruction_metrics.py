"""How well a tokenizer reconstructs images: PSNR, SSIM, rFID and other metrics of image pairs.

Two numbers are called rFID. Against the originals themselves it measures what the tokenizer loses;
against the training split it is the FID of a perfect generator (KL-16: 0.53 and 1.22).

Shapes: B batch, H W an image, S the side of a square image, all in pixels.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import UInt8
from torch import Tensor
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from mar.evaluation.extractors import Extractor, extract_batch
from mar.evaluation.metrics import frechet_distance, sample_count_warning
from mar.evaluation.reference import Moments, Statistics


@runtime_checkable
class PairMeasure(Protocol):
    """A metric of pairs of originals and reconstructions, which come in batches."""

    def update(
        self, originals: UInt8[Tensor, "B 3 H W"], reconstructions: UInt8[Tensor, "B 3 H W"]
    ) -> None:
        """Add some pairs."""
        ...

    def compute(self) -> dict[str, float]:
        """Return the numbers by their names."""
        ...


def score(
    pairs: Iterable[tuple[UInt8[Tensor, "_ 3 H W"], UInt8[Tensor, "_ 3 H W"]]],
    measures: Sequence[PairMeasure] = (),
) -> dict[str, float]:
    """Compare originals with reconstructions, in batches of any sizes.

    `psnr` in dB is that of the mean squared error over all images, and left out if there is no
    error; `ssim` is the mean over images. `measures` add their numbers. Without images there are no
    scores.
    """
    psnr = PeakSignalNoiseRatio(data_range=255.0)
    ssim = StructuralSimilarityIndexMeasure(data_range=255.0)
    count = 0
    for originals, reconstructions in pairs:
        count += len(originals)
        psnr.update(reconstructions.float(), originals.float())
        ssim.update(reconstructions.float(), originals.float())
        for measure in measures:
            measure.update(originals, reconstructions)
    if not count:
        return {}
    # By its type either could be a pair; neither was asked for one.
    values = {"psnr": psnr.compute(), "ssim": ssim.compute()}
    scores = {name: float(value) for name, value in values.items()}  # pyright: ignore[reportArgumentType]
    for measure in measures:
        scores |= measure.compute()
    return {name: value for name, value in scores.items() if math.isfinite(value)}


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

    def update(
        self, originals: UInt8[Tensor, "B 3 S S"], reconstructions: UInt8[Tensor, "B 3 S S"]
    ) -> None:
        """Add some pairs.

        Raises:
            ValueError: features are not finite.
        """
        sides = ((self._originals, originals), (self._reconstructions, reconstructions))
        for moments, images in sides:
            found = extract_batch(self._extractor, images, device=self._device, first=moments.count)
            moments.update(found.features)

    def compute(self) -> dict[str, float]:
        """Return both distances by their names, or nothing for fewer than two images."""
        if self._originals.count < 2:
            return {}
        name = self._extractor.names.rfid
        found = self._reconstructions.statistics()
        return {
            f"{name}_held_out": frechet_distance(found, self._originals.statistics()),
            f"{name}_train": frechet_distance(found, self._train),
        }

    def sample_count_warning(self) -> str | None:
        """Return a warning if there are too few images for their features."""
        count, width = self._originals.count, len(self._train.mean)
        return sample_count_warning(self._extractor.names.rfid, count, width) if count else None
