"""Train the tokenizer on the images."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from mar import distributed
from mar.data.dataset import ImageSet, image_batches
from mar.evaluation.classifier import Classifier, ClassifierConfig, load_classifier, save_classifier
from mar.evaluation.psnr import psnr
from mar.released.tokenizer import TokenizerSource, to_ours
from mar.tokenizer_training import perceptual
from mar.tokenizer_training.steps import broken_images, train
from mar.tokenizer_training.trainer import (
    TokenizerTrainer,
    TokenizerTrainingConfig,
    new_trainer,
    takes_steps,
)
from mar.tokenizers.codec import reconstruct
from mar.tokenizers.registry import build_tokenizer, save_tokenizer
from mar.training.step import Step
from stages import classifier_training, released, train_loop
from stages.images import open_images
from stages.stage import Stage, run


MANIFEST = Path("out/prepare/manifest.parquet")
SHOWN = 64  # held-out images, of which the curves tell the PSNR


def main(stage: Stage) -> None:
    """Train, and write the averaged weights, curves and reconstructions along the way."""
    image_size = stage.params("data.image_size", int)
    config = stage.params("tokenizer_training", TokenizerTrainingConfig)
    share = distributed.batch_share(config.batch_size, "tokenizer_training.batch_size")
    images = open_images(stage, MANIFEST, "train", image_size)
    held_out = open_images(stage, MANIFEST, "held_out", image_size)
    trainer = _new_trainer(stage, config, images)

    def preview(step: int) -> None:
        if distributed.is_main():
            stage.preview("reconstructions", tokenizer=trainer.ema, images=held_out, step=step)

    history = train_loop.run(
        stage,
        trainer,
        partial(_steps, stage, trainer, config, images, share),
        preview,
        {"held_out_psnr": partial(_held_out_psnr, trainer, held_out)},
        broken_samples=partial(broken_images, trainer, images, config, autocast=stage.autocast),
    )
    if distributed.is_main():
        save_tokenizer(stage.out / "tokenizer.safetensors", trainer.ema)
    metrics: dict[str, float] = {
        "steps": trainer.step,
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
    }
    for last in [point for point in history if "l1" in point][-1:]:  # none if nothing was trained
        metrics["l1_per_pixel"] = last["l1"] / (3 * image_size**2)
    stage.write_metrics(metrics)


def _new_trainer(
    stage: Stage, config: TokenizerTrainingConfig, images: ImageSet
) -> TokenizerTrainer:
    """Return the tokenizer with its first weights, and the networks of its losses."""
    section = stage.params("tokenizer", TokenizerSource)
    model = build_tokenizer(section)
    given = None
    if section.is_released:
        given = to_ours(section, released.read(stage, "tokenizer", section, model).tensors, model)
    distance = None
    if takes_steps(model, config):  # without the weights of LPIPS it ends here
        distance = perceptual.load(
            config.perceptual,
            lambda settings: _classifier(stage, settings, images),
            base=stage.root,
        )
    return new_trainer(model.to(stage.device), config, given, distance=distance)


def _steps(
    stage: Stage,
    trainer: TokenizerTrainer,
    config: TokenizerTrainingConfig,
    images: ImageSet,
    share: slice,
) -> Iterator[Step]:
    """Return the steps that are left, on this process's share of their batches."""
    batches = image_batches(
        images,
        config.batch_size,
        seed=config.seed,
        first_step=trainer.step,
        workers=stage.workers,
        part=share,
    )
    return train(trainer, batches, config, micro_batch=stage.micro_batch, autocast=stage.autocast)


def _held_out_psnr(trainer: TokenizerTrainer, held_out: ImageSet) -> float | None:
    """Return the PSNR of some held-out images in dB, of the averaged weights; None without any."""
    shown = held_out.spread(SHOWN)
    if not len(shown):
        return None
    restored = torch.cat([reconstruct(trainer.ema, part) for part in shown.split(8)])
    return psnr(restored, shown)


def _classifier(stage: Stage, config: ClassifierConfig, images: ImageSet) -> Classifier:
    """Return a classifier that is trained once: a killed stage finds it where it works."""
    path = stage.work / "perceptual.safetensors"

    def make() -> None:
        if not stage.is_made(path):
            model, _ = classifier_training.train(stage, config, images, prefix="perceptual_")
            save_classifier(path, model)

    distributed.from_main(make)
    return load_classifier(path)


if __name__ == "__main__":
    run(main)
