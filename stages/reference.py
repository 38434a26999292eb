"""Measure the real images that samples are compared with."""

from pathlib import Path

import pandas as pd

from mar import distributed
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
    # In one process: several would have to agree on every bit of the network that measures.
    distributed.from_main(lambda: _train(stage, config, train, folder / "classifier.safetensors"))
    extractor = extractors.load(config, folder, base=stage.root)
    reference = measure(
        config,
        extractor,
        train,
        device=stage.device,
        workers=stage.workers,
        base=stage.root,
    )
    found = extractors.extract(
        extractor, held_out, name="held-out images", device=stage.device, workers=stage.workers
    )
    if reference is None:
        extractors.do_share(found)
        return
    reference.save(folder / STATISTICS)
    scores = {}
    if len(held_out):
        gathered, labels = extractors.gather(found), held_out.labels
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


def _train(stage: Stage, config: ReferenceConfig, images: ImageSet, path: Path) -> None:
    """Train and save the classifier if it is the extractor; write its curves, else no rows."""
    curves = pd.DataFrame(columns=list(classifier_training.COLUMNS))
    if isinstance(config, ClassifierReference):
        model, curves = classifier_training.train(stage, config.classifier, images)
        save_classifier(path, model)
    atomic.write_text(stage.out / "curves.csv", curves.to_csv(index=False))


if __name__ == "__main__":
    run(main)
