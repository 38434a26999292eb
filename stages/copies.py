"""Count and show copies among generated images: of one another, and of real ones."""

from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from mar.data.spread import spread
from mar.evaluation.copies import SCALE, Copies, CopyScale, Nearest
from mar.evaluation.extractors import Images, ReferenceSection
from mar.evaluation.image_grid import comparison_grid
from mar.evaluation.published import find_published, read_published
from mar.evaluation.reference import Reference
from mar.sampling.store import SampleSet
from stages.images import open_images
from stages.stage import Stage


SHOWN = 12  # pairs of images in a row of the picture


def find(folder: Path, reference: Reference, features: Tensor) -> Copies | None:
    """Return the copies among generated images; None without real images to compare them with."""
    if not (folder / SCALE).is_file():
        return None
    return Copies.find(features, reference.features, CopyScale.read(folder / SCALE))


def report(found: Copies, reference: Reference) -> dict[str, Any]:
    """Return the shares of copies, and among how many real images they were sought."""
    return {**found.shares(), "num_compared": len(reference.features)}


def picture(
    stage: Stage,
    section: ReferenceSection,
    manifest: Path,
    samples: SampleSet,
    found: Copies,
    count: int,
) -> Image:
    """Show the images that are nearest to a real one and to another generated one.

    Args:
        stage: The stage.
        section: Says what the real images are.
        manifest: Lists them, if they are those of a split.
        samples: The generated images.
        found: Their neighbours.
        count: Of the real images whose features are kept.

    Raises:
        ValueError: a real image is not on this machine, or another one than was measured.
    """
    real = _reference_images(stage, section, manifest, samples.height, count)
    near, twins = _closest(found.training), _closest_pairs(found.others)
    kept = spread(len(real), count)[found.training.indices[near]]
    rows = {
        "generated, nearest to a real image": samples.stack(near.tolist()),
        "that real image": real.stack(kept.tolist()),
        "generated, nearest to another generated one": samples.stack(twins.tolist()),
        "that other one": samples.stack(found.others.indices[twins].tolist()),
    }
    return comparison_grid(rows)


def _reference_images(
    stage: Stage, section: ReferenceSection, manifest: Path, image_size: int, count: int
) -> Images:
    path, file = find_published(section, stage.root), section.statistics_file
    if path is None or file is None:
        return open_images(stage, manifest, section.split or "train", image_size)
    return read_published(path, file, image_size=image_size).keep(count)


def _closest(neighbours: Nearest) -> Tensor:
    return neighbours.distances.argsort(stable=True)[:SHOWN]


def _closest_pairs(neighbours: Nearest) -> Tensor:
    """Return the images of the closest pairs, one of each pair."""
    order = neighbours.distances.argsort(stable=True)
    seen: set[frozenset[int]] = set()
    chosen: list[int] = []
    for index in order.tolist():
        pair = frozenset((index, int(neighbours.indices[index])))
        if pair not in seen:
            seen.add(pair)
            chosen.append(index)
        if len(chosen) == SHOWN:
            break
    return torch.tensor(chosen)
