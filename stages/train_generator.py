"""Train MAR on the cached latents."""

import sys
from pathlib import Path

from mar import atomic, generator, training
from mar.data_config import DataConfig
from mar.generator import MAR, GeneratorConfig
from mar.latents import TRANSFORM, LatentCache, LatentsConfig, LatentsInfo
from mar.training import TrainingConfig
from stages import train_loop
from stages.stage import Stage, run


MANIFEST = Path("out/prepare/manifest.parquet")
LATENTS = Path("out/encode/latents")
TOKENIZER = Path("out/train_tokenizer/tokenizer.safetensors")


def main(stage: Stage) -> None:
    """Train, and write the raw and the averaged weights, curves and samples along the way."""
    data = stage.params("data", DataConfig)
    latents = stage.params("latents", LatentsConfig)
    config = stage.params("training", TrainingConfig)
    info = LatentsInfo.read(LATENTS.with_suffix(".json"))
    info.check(
        {
            "tokenizer": atomic.digest(TOKENIZER),
            "transform": TRANSFORM.format(size=data.image_size),
            "dtype": latents.dtype,
            "flips": latents.flips,
        }
    )
    cache = LatentCache(LATENTS, info)
    compared = stage.preflight(
        cache=cache, manifest=MANIFEST, weights=TOKENIZER, image_size=data.image_size
    )
    model = MAR(
        stage.params("generator", GeneratorConfig),
        info.latent,
        info.num_classes,
        info.codebook_size,
    )
    if warning := generator.find_narrow_denoiser(model):
        sys.stderr.write(f"{stage.name}: {warning}\n")
    trainer = training.new_trainer(model.to(stage.device), config)
    history = train_loop.run(
        stage,
        trainer,
        config,
        lambda: training.train(
            trainer, cache, config, micro_batch=stage.micro_batch, autocast=stage.autocast
        ),
        lambda step: stage.preview("samples", generator=trainer.ema, info=info, step=step),
    )
    generator.save(stage.out / "generator.safetensors", model, info.tokenizer)
    generator.save(stage.out / "ema.safetensors", trainer.ema, info.tokenizer)
    stage.write_metrics(
        {
            "steps": config.steps,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "loss": history[-1]["loss"],
            "images_per_second": train_loop.mean_speed(history, config),
            "preflight": compared,
        }
    )


if __name__ == "__main__":
    run(main)
