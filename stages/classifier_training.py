"""Train a classifier within a stage: show progress, keep curves."""

import pandas as pd
from tqdm import tqdm

from mar.data.dataset import ImageSet, image_batches
from mar.evaluation.classifier import Classifier, ClassifierConfig, new_classifier, train_classifier
from stages.stage import Stage


CURVE_STEPS = 10  # between two points of the curves
COLUMNS = ("step", "loss", "accuracy")


def train(
    stage: Stage, config: ClassifierConfig, images: ImageSet, *, prefix: str = ""
) -> tuple[Classifier, pd.DataFrame]:
    """Return the classifier and its curves, which the stage's run has as well.

    Args:
        stage: The stage that trains.
        config: The classifier.
        images: What it is trained on.
        prefix: Before the names of its curves in the run, where the stage has others.
    """
    model = new_classifier(config, image_size=images.image_size, num_classes=images.num_classes)
    batches = image_batches(
        images, config.batch_size, seed=config.seed, first_step=0, workers=stage.workers
    )
    curves = pd.DataFrame(columns=list(COLUMNS))
    steps = train_classifier(model.to(stage.device), batches)
    for step in tqdm(steps, total=config.steps, desc="train the classifier", unit="step"):
        number = step.index + 1
        if number % CURVE_STEPS == 0 or number == config.steps:
            values = {"loss": float(step.loss), "accuracy": float(step.accuracy)}
            curves.loc[len(curves)] = {"step": number, **values}
            stage.run.metrics({prefix + name: value for name, value in values.items()}, number)
    return model, curves
