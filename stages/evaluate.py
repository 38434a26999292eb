"""Score the generated images against the real ones."""

from pathlib import Path
from typing import Any

import pandas as pd
from PIL.Image import Image

from mar import distributed
from mar.data.class_names import read_class_names
from mar.evaluation import extractors
from mar.evaluation.confusion import confusion_picture
from mar.evaluation.extractor_registry import ReferenceConfig
from mar.evaluation.extractors import Extractor, Features
from mar.evaluation.image_grid import captioned_grid, label_grid
from mar.evaluation.metrics import class_warning, distance_to_reference, score
from mar.evaluation.real_images import RealImages
from mar.evaluation.reference import Reference
from mar.evaluation.score_config import EvaluateConfig
from mar.evaluation.score_names import bases, find
from mar.files import atomic
from mar.sampling.store import SampleSet
from stages import copies, evaluation_report, pictures, prompt_scores, scene_scores
from stages.prompt_scores import Scorers
from stages.stage import Stage, run


SAMPLES = Path("out/sample/samples")
REFERENCE = Path("out/reference/extractor")
CLASSES = Path("out/prepare/classes.json")
GRID, CURVES = Path("out/sample/grid.png"), Path("out/train_generator/curves.csv")
MANIFEST = Path("out/prepare/manifest.parquet")
SHOWN = 50  # images in the picture of the farthest


def main(stage: Stage) -> None:
    """Write the samples' scores beside those of real images that were held out."""
    config = stage.params("evaluate", EvaluateConfig)
    section = stage.params("reference", ReferenceConfig)
    source = stage.params("data.source", str)
    sampling = stage.params("sample", dict[str, Any])  # for the report alone
    samples = distributed.from_main(lambda: SampleSet(SAMPLES))  # compared with their seals once
    scorers: list[Scorers] = []  # of the main process; opened first, as their folders may be wrong
    distributed.from_main(
        lambda: scorers.append(
            prompt_scores.open_scorers(config, samples, stage.device, base=stage.root)
        )
    )
    size = {"height": samples.height, "width": samples.width}
    real = RealImages.load(REFERENCE, section, base=stage.root, **size)
    extractor, reference = real.extractor, real.reference
    fitted = real.fit(config, "samples", len(samples))
    about_classes = class_warning(samples.labels, samples.num_classes, real.info.class_counts)
    warnings = stage.warn([*fitted.warnings, about_classes])
    batches = extractors.extract(extractor, samples, name="samples", device=stage.device, workers=0)
    if not distributed.is_main():
        extractors.do_share(batches)
        return
    found = extractors.gather(batches, len(samples))
    scores = score(found, samples.labels, reference, names=extractor.names, config=fitted.config)

    atomic.write_text(stage.out / "scores.csv", _table(scores, real.info.held_out))
    alike = copies.find(REFERENCE, reference, found.features)
    shares = {"copies": copies.report(alike, reference)} if alike else {}
    scenes = scene_scores.find(source, MANIFEST, samples.prompts, samples)
    warnings += stage.warn([scene_scores.warning(source, samples.prompts, scenes)])
    by_prompts = prompt_scores.find(scorers[0], samples)
    report = real.report(scores, len(samples)) | shares | scenes | by_prompts
    stage.write_metrics(report | {"warnings": " ".join(f"{text}." for text in warnings)})
    described = ("extractor", "reference", "num_samples")
    stage.run.tags({key: str(report[key]) for key in described} | {"warnings": "\n".join(warnings)})
    _draw(stage, extractor, samples, found, reference)
    if alike:
        pictures.save(
            stage,
            stage.out / "pictures" / "nearest.png",
            lambda: copies.picture(
                stage, section, MANIFEST, samples, alike, len(reference.features)
            ),
        )
    sections = {"sample": sampling, "evaluate": config.model_dump(),
                "reference": section.model_dump()}  # fmt: skip
    page = evaluation_report.compose(
        stage, report, real.info, sections, alike, warnings=warnings, grid=GRID, curves=CURVES
    )
    evaluation_report.write(stage, page)


def _table(scores: dict[str, float], held_out: dict[str, float]) -> str:
    """Return scores and their spreads beside those of real images, as CSV.

    The counts of few images are no part of a row's name, as both columns have one.
    """
    columns = {"samples": scores, "held_out": held_out}
    rows = [
        {"metric": base}
        | {name: find(found, base) for name, found in columns.items()}
        | {f"{name}_std": find(found, base, spread=True) for name, found in columns.items()}
        for base in bases(scores, held_out)
    ]
    return pd.DataFrame(rows).to_csv(index=False)


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
        if samples.prompts is None:
            return label_grid(images, labels, class_names=class_names, columns=10)
        prompts = [samples.prompts[index] for index in chosen.tolist()]
        return captioned_grid(images, prompts, columns=10, lines=3)

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
