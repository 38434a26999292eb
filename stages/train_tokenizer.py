"""Train the tokenizer on the images."""

from functools import partial
from pathlib import Path

import torch

from mar import distributed
from mar.data.dataset import ImageSet, image_batches
from mar.evaluation.classifier import Classifier, ClassifierConfig, load_classifier, save_classifier
from mar.evaluation.psnr import psnr
from mar.released.tokenizer import TokenizerSource, to_ours
from mar.tokenizer_training import perceptual
from mar.tokenizer_training import trainer as tokenizer_training
from mar.tokenizer_training.trainer import TokenizerTrainingConfig, broken_images
from mar.tokenizers.codec import reconstruct
from mar.tokenizers.registry import build_tokenizer, save_tokenizer
from stages import classifier_training, released, train_loop
from stages.images import open_images
from stages.stage import Stage, run


MANIFEST = Path("out/prepare/manifest.parquet")
SHOWN = 64  # held-out images, of which the curves tell the PSNR


def main(stage: Stage) -> None:
    """Train, and write the averaged weights, curves and reconstructions along the way."""
    image_size = stage.params("data.image_size", int)
    config = stage.params("tokenizer_training", TokenizerTrainingConfig)
    section = stage.params("tokenizer", TokenizerSource)
    model = build_tokenizer(section)
    given = None
    if section.is_released:
        given = to_ours(section, released.read(stage, "tokenizer", section, model).tensors, model)
    images = open_images(stage, MANIFEST, "train", image_size)
    distance = None
    if tokenizer_training.takes_steps(model, config):  # without the weights of LPIPS it ends here
        distance = perceptual.load(
            config.perceptual,
            lambda settings: _classifier(stage, settings, images),
            base=stage.root,
        )
    model = model.to(stage.device)
    trainer = tokenizer_training.new_trainer(model, config, given, distance=distance)

    share = distributed.batch_share(config.batch_size, "tokenizer_training.batch_size")

    def steps():
        batches = image_batches(
            images,
            config.batch_size,
            seed=config.seed,
            first_step=trainer.step,
            workers=stage.workers,
            part=share,
        )
        return tokenizer_training.train(
            trainer, batches, config, micro_batch=stage.micro_batch, autocast=stage.autocast
        )

    held_out = open_images(stage, MANIFEST, "held_out", image_size)

    def preview(step: int) -> None:
        if distributed.is_main():
            stage.preview("reconstructions", tokenizer=trainer.ema, images=held_out, step=step)

    def held_out_psnr() -> float | None:
        shown = held_out.spread(SHOWN)
        if not len(shown):
            return None
        restored = torch.cat([reconstruct(trainer.ema, part) for part in shown.split(8)])
        return psnr(restored, shown)

    measures = {"held_out_psnr": held_out_psnr}  # in dB, of the averaged weights
    history = train_loop.run(
        stage,
        trainer,
        steps,
        preview,
        measures,
        broken_samples=partial(broken_images, trainer, images, config, autocast=stage.autocast),
    )
    if distributed.is_main():
        save_tokenizer(stage.out / "tokenizer.safetensors", trainer.ema)
    metrics: dict[str, float] = {
        "steps": trainer.step,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    for last in [point for point in history if "l1" in point][-1:]:  # none if nothing was trained
        metrics["l1_per_pixel"] = last["l1"] / (3 * image_size**2)
    stage.write_metrics(metrics)


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
