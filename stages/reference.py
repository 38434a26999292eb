"""Measure the real images that samples are compared with."""

from pathlib import Path

import pandas as pd
from torch import Tensor

from mar import distributed
from mar.data.dataset import ImageSet
from mar.evaluation import extractors
from mar.evaluation.classifier import save_classifier
from mar.evaluation.classifier_extractor import ClassifierReference
from mar.evaluation.copies import SCALE, CopyScale
from mar.evaluation.extractor_registry import ReferenceConfig
from mar.evaluation.extractors import Features
from mar.evaluation.metrics import score
from mar.evaluation.real_images import RealImages
from mar.evaluation.reference import INFO, STATISTICS, ReferenceInfo, measure
from mar.evaluation.score_config import ScoreConfig
from mar.files import atomic
from stages import classifier_training
from stages.images import open_images
from stages.stage import Stage, run


MANIFEST = Path("out/prepare/manifest.parquet")


def main(stage: Stage) -> None:
    """Measure the real images, and score held-out ones as an example of good scores."""
    image_size = stage.params("data.image_size", int)
    config = stage.params("reference", ReferenceConfig)
    train = open_images(stage, MANIFEST, "train", image_size)
    held_out = open_images(stage, MANIFEST, "held_out", image_size)
    measured = held_out if config.split == "held_out" else train

    folder = stage.out / "extractor"
    # In one process: several would have to agree on every bit of the network that measures.
    distributed.from_main(lambda: _train(stage, config, train, folder / "classifier.safetensors"))
    extractor = extractors.load(config, folder, base=stage.root)
    reference = measure(
        config,
        extractor,
        measured,
        device=stage.device,
        workers=stage.workers,
        base=stage.root,
    )
    # What is compared with itself is no example, and one image has no covariance.
    scored = measured is not held_out and len(held_out) > 1
    batches = extractors.extract(
        extractor,
        held_out,
        name="held-out images",
        device=stage.device,
        workers=stage.workers if scored else 0,
    )
    if reference is None:
        if scored:
            extractors.do_share(batches)
        return
    reference.save(folder / STATISTICS)
    counts = None if config.split is None else _class_counts(measured)  # statistics do not say
    info = ReferenceInfo.describe(extractor, reference, image_size, counts)
    held_out_features = reference.features[:0]
    if scored:
        found = extractors.gather(batches, len(held_out))
        held_out_features = found.features
        info = _score(stage, RealImages(info, extractor, reference), found, held_out.labels)
    if len(reference.features) > 1 and measured is train:  # held-out images are never copied
        CopyScale.measure(reference.features, held_out_features).write(folder / SCALE)
    info.write(folder / INFO)
    _write_metrics(stage, info)


def _class_counts(images: ImageSet) -> list[int]:
    """Return how many images each class has."""
    return images.labels.bincount(minlength=images.num_classes).tolist()


def _write_metrics(stage: Stage, info: ReferenceInfo) -> None:
    """Write the scores of held-out images, and what they were compared with."""
    stage.write_metrics(
        {
            "held_out": info.held_out,
            "extractor": info.extractor,
            "reference": info.id,
            "num_reference": info.num_reference,
            "num_held_out": info.num_held_out,
        }
    )


def _score(stage: Stage, real: RealImages, found: Features, labels: Tensor) -> ReferenceInfo:
    """Return the description of the real images, with the scores of those that were held out."""
    config = stage.keys("evaluate", ScoreConfig)
    fitted = real.fit(config, "held-out images", len(labels))
    stage.warn(fitted.warnings)
    scores = score(found, labels, real.reference, names=real.extractor.names, config=fitted.config)
    return real.info.model_copy(update={"num_held_out": len(labels), "held_out": scores})


def _train(stage: Stage, config: ReferenceConfig, images: ImageSet, path: Path) -> None:
    """Train and save the classifier if it is the extractor; write its curves, else no rows."""
    curves = pd.DataFrame(columns=list(classifier_training.COLUMNS))
    if isinstance(config, ClassifierReference):
        model, curves = classifier_training.train(stage, config.classifier, images)
        save_classifier(path, model)
    atomic.write_text(stage.out / "curves.csv", curves.to_csv(index=False))


if __name__ == "__main__":
    run(main)
