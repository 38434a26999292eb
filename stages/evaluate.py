"""Score the generated images against the real ones."""

from pathlib import Path

import pandas as pd
from PIL.Image import Image

from mar import distributed
from mar.data.class_names import read_class_names
from mar.evaluation import extractors
from mar.evaluation.confusion import confusion_picture
from mar.evaluation.extractor_registry import ReferenceConfig
from mar.evaluation.extractors import Extractor, Features
from mar.evaluation.image_grid import label_grid
from mar.evaluation.metrics import EvaluateConfig, check_sizes, distance_to_reference, score
from mar.evaluation.real_images import RealImages
from mar.evaluation.reference import Reference
from mar.files import atomic
from mar.sampling.store import SampleSet
from stages import pictures
from stages.stage import Stage, run


SAMPLES = Path("out/sample/samples")
REFERENCE = Path("out/reference/extractor")
CLASSES = Path("out/prepare/classes.json")
SHOWN = 50  # images in the picture of the farthest


def main(stage: Stage) -> None:
    """Write the samples' scores beside those of real images that were held out."""
    config = stage.params("evaluate", EvaluateConfig)
    section = stage.params("reference", ReferenceConfig)
    samples = distributed.from_main(lambda: SampleSet(SAMPLES))  # compared with their seals once
    size = {"height": samples.height, "width": samples.width}
    real = RealImages.load(REFERENCE, section, base=stage.root, **size)
    extractor, reference = real.extractor, real.reference
    check_sizes(
        config,
        "samples",
        len(samples),
        num_features=real.info.num_features,
        inception_score=extractor.names.inception_score is not None,
    )
    batches = extractors.extract(extractor, samples, name="samples", device=stage.device, workers=0)
    if not distributed.is_main():
        extractors.do_share(batches)
        return
    found = extractors.gather(batches)
    scores = score(found, samples.labels, reference, names=extractor.names, config=config)

    columns = {"samples": scores, "held_out": real.info.held_out}
    table = pd.DataFrame(columns).rename_axis("metric")
    atomic.write_text(stage.out / "scores.csv", table.to_csv())
    stage.write_metrics(real.report(scores, len(samples)))
    _draw(stage, extractor, samples, found, reference)


def _draw(
    stage: Stage,
    extractor: Extractor,
    samples: SampleSet,
    found: Features,
    reference: Reference,
) -> None:
    """Draw the samples that are least like any real image and, with a classifier, its confusion
    matrix.
    """
    folder = stage.out / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    class_names = read_class_names(CLASSES)

    def farthest() -> Image:
        distances = distance_to_reference(found, reference)
        chosen = distances.argsort(descending=True)[:SHOWN]
        images, labels = samples.stack(chosen.tolist()), samples.labels[chosen]
        return label_grid(images, labels, class_names=class_names, columns=10)

    def confusion() -> Image:
        assert found.logits is not None
        predicted = found.logits.argmax(dim=1)
        return confusion_picture(samples.labels, predicted, class_names)

    if len(reference.features):
        pictures.save(stage, folder / "farthest.png", farthest)
    if extractor.names.accuracy is not None:
        pictures.save(stage, folder / "confusion.png", confusion)


if __name__ == "__main__":
    run(main)
