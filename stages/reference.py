"""Measure the real images that samples are compared with."""

from pathlib import Path

import pandas as pd

from mar.data.dataset import ImageSet
from mar.evaluation import extractors
from mar.evaluation.classifier import save_classifier
from mar.evaluation.classifier_extractor import ClassifierReference
from mar.evaluation.extractor_registry import ReferenceConfig
from mar.evaluation.metrics import EvaluateConfig, check_sizes, score
from mar.evaluation.reference import (
    INFO,
    STATISTICS,
    ReferenceInfo,
    find_published,
    has_images,
    measure,
)
from mar.files import atomic
from stages import classifier_training
from stages.images import open_images
from stages.stage import Stage, run


MANIFEST = Path("out/prepare/manifest.parquet")


def main(stage: Stage) -> None:
    """Measure the training split, and score the held-out one as an example of good scores."""
    image_size = stage.params("data.image_size", int)
    config = stage.params("reference", ReferenceConfig)
    evaluate = stage.params("evaluate", EvaluateConfig)
    train = open_images(stage, MANIFEST, "train", image_size)
    held_out = open_images(stage, MANIFEST, "held_out", image_size)
    published = find_published(config, stage.root)
    num_features = min(config.num_features, len(train))
    if published is not None and not has_images(published):
        num_features = 0
    if len(held_out):
        check_sizes(
            evaluate,
            "held-out images",
            len(held_out),
            num_features=num_features,
            inception_score=config.has_inception_score,
        )

    folder = stage.out / "extractor"
    curves = _train(stage, config, train, folder / "classifier.safetensors")
    atomic.write_text(stage.out / "curves.csv", curves.to_csv(index=False))
    extractor = config.load(folder, base=stage.root)
    reference = measure(
        config,
        extractor,
        train,
        device=stage.device,
        workers=stage.workers,
        base=stage.root,
    )
    reference.save(folder / STATISTICS)
    scores = {}
    if len(held_out):
        found = extractors.extract(
            extractor, held_out, name="held-out images", device=stage.device, workers=stage.workers
        )
        labels = held_out.labels
        gathered = extractors.gather(found)
        scores = score(gathered, labels, reference, names=extractor.names, config=evaluate)
    info = ReferenceInfo.describe(extractor, reference, image_size, len(held_out), scores)
    info.write(folder / INFO)
    stage.write_metrics(
        {
            "held_out": scores,
            "extractor": info.extractor,
            "reference": info.id,
            "num_reference": info.num_reference,
            "num_held_out": info.num_held_out,
        }
    )


def _train(stage: Stage, config: ReferenceConfig, images: ImageSet, path: Path) -> pd.DataFrame:
    """Train and save the classifier if it is the extractor; return its curves, else no rows."""
    if not isinstance(config, ClassifierReference):
        return pd.DataFrame(columns=list(classifier_training.COLUMNS))
    model, curves = classifier_training.train(stage, config.classifier, images)
    save_classifier(path, model)
    return curves


if __name__ == "__main__":
    run(main)
