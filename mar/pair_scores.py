"""How well images are given back: PSNR, SSIM and other measures of pairs of 8-bit images.

Shapes: B batch, H W an image.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import UInt8
from torch import Tensor
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure


@runtime_checkable
class PairMeasure(Protocol):
    """What tells originals from reconstructions, in a stream of pairs."""

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

    `psnr` in dB is that of the mean squared error over all images, and left out where there is no
    error; `ssim` is the mean over images. Further measures of the same pairs add their numbers.
    There are no scores of no images.
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
    """Show differences, enlarged by `gain`, around a mid-grey of 128."""
    return (128 + gain * (reconstructions.float() - originals.float())).clamp(0, 255).byte()
