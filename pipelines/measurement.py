"""The measurements of an ablation's experiments, their means over seeds, and the paper's FIDs."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from mar.evaluation.score_names import find, parts
from pipelines.clone import Clone


# The distance between generated and real images has a name for each feature extractor
# (`mar.evaluation.metrics`).
DISTANCES = ("classifier_fid", "untrained_fid", "fid", "fd_dinov2")
PUBLISHED = re.compile(r"FID ([\d.]+) without guidance, ([\d.]+) with\b")


@dataclass(frozen=True)
class Measurement:
    """What one experiment measured.

    Attributes:
        row: The preset.
        seed: Of training and sampling.
        guided: Whether it was sampled with the preset's guidance, or without guidance.
        experiment: The name of the DVC experiment.
        distance: The name of the FID, which says by which features it is measured.
        fid: FID of the generated images.
        real_fid: FID of held-out real images.
        classifier_accuracy: The share of generated images that the classifier recognises.
        real_classifier_accuracy: The share of held-out real images that it recognises.
        psnr: PSNR of the tokenizer's reconstructions, in dB; none for a lossless tokenizer.
        parameters: Number of the generator's parameters.
        training_seconds: Duration of its training; none if it was restored from DVC's cache.
        sampling_ms: Milliseconds to generate an image; none if they were restored.
    """

    row: str
    seed: int
    guided: bool
    experiment: str
    distance: str
    fid: float
    real_fid: float
    classifier_accuracy: float | None
    real_classifier_accuracy: float | None
    psnr: float | None
    parameters: int
    training_seconds: float | None
    sampling_ms: float | None


def read(
    clone: Clone,
    reference: str,
    params: dict[str, Any],
    speeds: dict[str, dict[str, float]],
    *,
    row: str,
    seed: int,
    guided: bool,
) -> Measurement:
    """Read what the stages of an experiment measured; speeds are known of stages that ran here."""
    stages = ("reconstruct", "train_generator", "evaluate")
    restored, trained, scored = (clone.metrics(reference, stage) for stage in stages)
    distance = next(name for name in scored["samples"] if parts(name).base in DISTANCES)
    real_fid = find(scored["held_out"], parts(distance).base)
    assert real_fid is not None  # rows are compared with a split of real images
    images = trained["steps"] * params["training"]["batch_size"]
    training, sampling = (
        speeds.get(stage, {}).get("images_per_second") for stage in ("train_generator", "sample")
    )
    return Measurement(
        row=row,
        seed=seed,
        guided=guided,
        experiment=reference.rpartition("/")[2],
        distance=distance,
        fid=scored["samples"][distance],
        real_fid=real_fid,
        classifier_accuracy=scored["samples"].get("classifier_accuracy"),
        real_classifier_accuracy=scored["held_out"].get("classifier_accuracy"),
        psnr=restored.get("psnr"),
        parameters=trained["parameters"],
        training_seconds=images / training if training else None,
        sampling_ms=1000 / sampling if sampling else None,
    )


@dataclass(frozen=True)
class Over:
    """One quantity, measured with several seeds."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Over":
        """Gather the values; those that were not measured (None) are left out."""
        return cls(tuple(value for value in values if value is not None))

    @property
    def mean(self) -> float:
        """Return the mean."""
        return mean(self.values)

    @property
    def spread(self) -> float:
        """Return the standard deviation; 0 for a single seed."""
        return stdev(self.values) if len(self.values) > 1 else 0.0

    def beats(self, other: "Over") -> bool | None:
        """Return whether all these values are lower; None if the two ranges overlap."""
        if max(self.values) < min(other.values):
            return True
        return False if min(self.values) > max(other.values) else None


@dataclass(frozen=True)
class Row:
    """A row of the table: all measurements of a preset.

    Attributes:
        name: The preset, without its folder.
        measurements: Its measurements with all seeds, with guidance and without.
        published: The paper's FID without and with guidance; None if the paper has no such row.
    """

    name: str
    measurements: tuple[Measurement, ...]
    published: tuple[float, float] | None

    def over(self, quantity: str, *, guided: bool | None = None) -> Over:
        """Return a quantity over the seeds, with guidance, without, or both (None)."""
        chosen = [m for m in self.measurements if guided in (None, m.guided)]
        return Over.of(getattr(measurement, quantity) for measurement in chosen)


def rows(measurements: Iterable[Measurement], presets: Path) -> list[Row]:
    """Group measurements by preset, in the order in which the presets first appear."""
    found: dict[str, list[Measurement]] = {}
    for measurement in measurements:
        found.setdefault(measurement.row, []).append(measurement)
    return [
        Row(name.rpartition("/")[2], tuple(of), published(name, presets))
        for name, of in found.items()
    ]


def published(row: str, presets: Path) -> tuple[float, float] | None:
    """Return the FIDs in the head comment of the preset of the same name under `paper/`, if any."""
    path = presets / "paper" / f"{row.rpartition('/')[2]}.yaml"
    match = PUBLISHED.search(path.read_text(encoding="utf-8")) if path.is_file() else None
    return (float(match[1]), float(match[2])) if match else None
