"""rFID: how far reconstructions are from real images as a set, by the features of an extractor.

Two numbers go by that name. Against the originals themselves it tells what the tokenizer loses;
against the training split it is what a perfect generator would score (KL-16: 0.53 and 1.22).

Shapes: B images, S their side in pixels.
"""

import torch
from jaxtyping import UInt8
from torch import Tensor

from mar.extractors import Extractor, Kind, look
from mar.fidelity import frechet_distance
from mar.reference import Moments, Statistics


# The plain name belongs to Inception, as in `mar.fidelity`.
NAMES: dict[Kind, str] = {
    "classifier": "classifier_rfid",
    "inception": "rfid",
    "dinov2": "rfd_dinov2",
}


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
            found = look(self._extractor, images, device=self._device, first=moments.count)
            moments.update(found.features)

    def compute(self) -> dict[str, float]:
        """Return both distances by their names, or none of fewer than two images."""
        if self._originals.count < 2:
            return {}
        name = NAMES[self._extractor.kind]
        found = self._reconstructions.statistics()
        return {
            f"{name}_held_out": frechet_distance(found, self._originals.statistics()),
            f"{name}_train": frechet_distance(found, self._train),
        }

    def find_bias(self) -> str | None:
        """Return a warning if there are too few images for their features."""
        count, width = self._originals.count, len(self._train.mean)
        if not 0 < count <= width:
            return None
        return (
            f"{NAMES[self._extractor.kind]} of {count} images by {width} features is too large: a "
            f"covariance wants more images than features; compare it with those of {count} alone"
        )
