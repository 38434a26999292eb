"""Damage generated images in known ways, to see which score notices which damage.

`python -m benchmarks.damage` takes the samples and the reference of a finished pipeline (`--out`)
and prints a table in Markdown. Each damage is drawn from the seed.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mar.data.dataset import ImageSet
from mar.evaluation.copies import Copies, CopyScale
from mar.evaluation.extractor_registry import ReferenceConfig
from mar.evaluation.extractors import Features, Images, extract, gather
from mar.evaluation.metrics import score
from mar.evaluation.real_images import RealImages
from mar.evaluation.score_config import EvaluateConfig
from mar.evaluation.score_names import find
from mar.sampling.store import SampleSet
from mar.seeds import make_rng
from stages import params
from stages.scoring import TensorImages


DROPPED = 3  # classes
CPU = torch.device("cpu")


class Sample(NamedTuple):
    """Images, uint8 (B, 3, S, S), and the labels that they were generated for."""

    images: Tensor
    labels: Tensor


class Source(NamedTuple):
    """What damages are made of: samples, real training images of their number, randomness."""

    sample: Sample
    real: Sample
    rng: torch.Generator

    @property
    def half(self) -> Tensor:
        """Which images are damaged, where half of them are."""
        return torch.randperm(len(self.sample.labels), generator=self.rng) % 2 == 0


def noise(source: Source) -> Sample:
    """Add Gaussian noise of 32 grey levels, the same to all colours."""
    images, labels = source.sample
    grains = 32 * torch.randn(images[:, :1].shape, generator=source.rng)
    return Sample((images + grains).round().clamp(0, 255).to(torch.uint8), labels)


def blur(source: Source) -> Sample:
    """Average over 3 x 3 pixels."""
    images, labels = source.sample
    padded = functional.pad(images.float(), (1, 1, 1, 1), mode="replicate")
    return Sample(functional.avg_pool2d(padded, 3, 1).round().to(torch.uint8), labels)


def drop_modes(source: Source) -> Sample:
    """Generate none of some classes."""
    images, labels = source.sample
    kept = labels >= DROPPED
    return Sample(images[kept], labels[kept])


def mix_labels(source: Source) -> Sample:
    """Give half of the images the label of any other image."""
    images, labels = source.sample
    mixed = labels[torch.randperm(len(labels), generator=source.rng)]
    return Sample(images, torch.where(source.half, mixed, labels))


def duplicate(source: Source) -> Sample:
    """Replace half of the images by copies of the others of their class."""
    images, labels = source.sample
    chosen = torch.arange(len(labels))
    for label in labels.unique():
        mine = (labels == label).nonzero()[:, 0]
        middle = len(mine) // 2
        chosen[mine[middle : 2 * middle]] = mine[:middle]
    return Sample(images[chosen], labels)


def copy_training(source: Source) -> Sample:
    """Replace half of the images by training images."""
    half = source.half
    images = torch.where(half[:, None, None, None], source.real.images, source.sample.images)
    return Sample(images, torch.where(half, source.real.labels, source.sample.labels))


DAMAGES: dict[str, Callable[[Source], Sample]] = {
    "none": lambda source: source.sample,
    "noise of 32 grey levels": noise,
    "blur, 3 x 3 pixels": blur,
    "3 of 10 classes dropped": drop_modes,
    "labels of half mixed": mix_labels,
    "half duplicates": duplicate,
    "half copies of training images": copy_training,
}
COLUMNS = {
    "FID": "fid",
    "FID inf": "fid_infinity",
    "IS": "inception_score",
    "KID": "kid",
    "MMD": "mmd",
    "precision": "precision",
    "recall": "recall",
    "recognised": "accuracy",
}


def measure(
    sample: Sample, real: RealImages, scale: CopyScale, config: EvaluateConfig
) -> list[str]:
    """Return the cells of a row."""
    images, names = TensorImages(sample.images), real.extractor.names
    found = features_of(real, images)
    fitted = real.fit(config, "samples", len(images)).config
    scores = score(found, sample.labels, real.reference, names=names, config=fitted)
    cells: list[str] = []
    for attribute in COLUMNS.values():
        base = getattr(names, attribute)
        value, spread = find(scores, base), find(scores, base, spread=True)
        assert value is not None
        cells.append(f"{value:.3f}" if spread is None else f"{value:.3f} +- {spread:.3f}")
    shares = Copies.find(found.features, real.reference.features, scale).shares()
    return [*cells, *(f"{100 * share:.1f} %" for share in shares.values())]


def features_of(real: RealImages, images: Images) -> Features:
    """Return the features of images in memory or on the disk."""
    batches = extract(real.extractor, images, name="images", device=CPU, workers=0)
    return gather(batches, len(images))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.damage", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out"), help="of a finished pipeline")
    parser.add_argument("--seed", type=int, default=0, help="of the damages")
    arguments = parser.parse_args()
    samples = SampleSet(arguments.out / "sample" / "samples")
    size = {"height": samples.height, "width": samples.width}
    section = params.load("reference", ReferenceConfig)
    folder = arguments.out / "reference" / "extractor"
    real = RealImages.load(folder, section, base=Path(), **size)
    manifest = arguments.out / "prepare" / "manifest.parquet"
    train, held_out = (ImageSet(manifest, it, samples.height) for it in ("train", "held_out"))
    scale = CopyScale.measure(real.reference.features, features_of(real, held_out).features)
    sample = Sample(samples.stack(list(range(len(samples)))), samples.labels)
    rng = make_rng("training images", arguments.seed)
    chosen = torch.randint(len(train), (len(samples),), generator=rng)
    images = Sample(train.stack(chosen.tolist()), train.labels[chosen])
    config = params.load("evaluate", EvaluateConfig)
    heads = ["damage", *COLUMNS, "near-duplicates", "training copies"]
    rows = [heads, ["---"] * len(heads)]
    for name, damage in DAMAGES.items():
        source = Source(sample, images, make_rng("damage", arguments.seed, name))
        rows.append([name, *measure(damage(source), real, scale, config)])
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))


if __name__ == "__main__":
    main()
