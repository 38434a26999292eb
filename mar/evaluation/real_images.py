"""Real images as the stage `reference` measured them, ready to score others against them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mar.evaluation import extractors
from mar.evaluation.extractors import Extractor, ReferenceSection
from mar.evaluation.metrics import reference_warnings
from mar.evaluation.reference import INFO, STATISTICS, Reference, ReferenceInfo
from mar.evaluation.score_config import ScoreConfig, fit_sizes, fit_warnings
from mar.evaluation.score_names import count_warnings
from mar.evaluation.uncertainty import infinity_warning


class Fitted(NamedTuple):
    """Settings that fit a number of images, and warnings."""

    config: ScoreConfig
    warnings: list[str]


@dataclass(frozen=True)
class RealImages:
    """Real images as the scores see them.

    Attributes:
        info: What they are, and what real images that were held out score against them.
        extractor: The network whose features are compared.
        reference: Their statistics, and the features of some.
    """

    info: ReferenceInfo
    extractor: Extractor
    reference: Reference

    @classmethod
    def load(
        cls, folder: Path, section: ReferenceSection, *, base: Path, height: int, width: int
    ) -> "RealImages":
        """Read what the stage `reference` wrote, to score images of some height and width.

        Args:
            folder: Where it wrote (`out/reference/extractor`).
            section: Loads the extractor.
            base: The folder that a relative path of a weight file starts from.
            height: Of the images, in pixels.
            width: Of the images, in pixels.

        Raises:
            ValueError: a file is missing or damaged, the extractor is another one than when the
                real images were measured, or they are of another size.
        """
        info = ReferenceInfo.read(folder / INFO)
        extractor = extractors.load(section, folder, base=base)
        info.check(extractor, height=height, width=width)
        return cls(info, extractor, Reference.load(folder / STATISTICS))

    def fit(self, config: ScoreConfig, name: str, num_images: int) -> Fitted:
        """Return the settings that so many images bear, and what a person should know of them.

        Args:
            config: Of section `evaluate` of `params.yaml`.
            name: What the images are called.
            num_images: How many are to be scored.

        Raises:
            ValueError: there are fewer than two, which have no covariance.
        """
        if num_images < 2:
            raise ValueError(f"scores need 2 images or more, got {num_images} ({name})")
        fitted = fit_sizes(config, num_images, self.info.num_features)
        names, width = self.extractor.names, self.reference.width
        warnings = [
            *fit_warnings(name, config, fitted),
            *reference_warnings(names, self.reference),
            *count_warnings(names.fid, num_images, width),
        ]
        warning = infinity_warning(names.fid_infinity, num_images, width)
        if config.infinity_points and warning is not None:
            warnings.append(warning)
        return Fitted(fitted, warnings)

    def report(self, scores: dict[str, float], num_samples: int) -> dict[str, Any]:
        """Return scores beside those of real images, and what they were measured with."""
        return {
            "samples": scores,
            "held_out": self.info.held_out,
            "extractor": self.info.extractor,
            "reference": self.info.id,
            "num_samples": num_samples,
            "num_reference": self.info.num_reference,
            "num_held_out": self.info.num_held_out,
        }
