"""Train MAR on the cached latents."""

from pathlib import Path

from mar.activation_checkpointing import set_checkpointing
from mar.files import seal
from mar.latents.cache import LatentCache
from mar.latents.info import TRANSFORM, LatentsInfo, latent_std
from mar.model.mar import MAR, save_mar
from mar.released.generator import GeneratorSource
from mar.training.generator import InitialWeights, TrainingConfig, new_trainer, train
from stages import released, train_loop
from stages.stage import Stage, run


LATENTS = Path("out/encode/latents")
TOKENIZER = Path("out/train_tokenizer/tokenizer.safetensors")


def main(stage: Stage) -> None:
    """Train, and write the raw and the averaged weights, and curves."""
    image_size = stage.params("data.image_size", int)
    config = stage.params("training", TrainingConfig)
    info = LatentsInfo.read(LATENTS.with_suffix(".json"))
    info.check(
        {
            "tokenizer": seal.digest(TOKENIZER),
            "transform": TRANSFORM.format(size=image_size),
            "dtype": stage.params("latents.dtype", str),
            "flips": stage.params("latents.flips", bool),
            "latent_std": latent_std(stage.params("latents.scale", float | None), info.std),
        }
    )
    section = stage.params("generator", GeneratorSource)
    model = MAR(section, info.latent, info.num_classes, info.codebook_size)
    set_checkpointing(model, stage.checkpointing)
    given = None
    if section.source == "released":
        found = released.read(stage, "generator", section, model)
        given = InitialWeights(section.to_ours(found.chosen), section.to_ours(found.model))
    cache = LatentCache(LATENTS, info)
    stage.preflight(cache=cache, weights=TOKENIZER, image_size=image_size)
    trainer = new_trainer(model.to(stage.device), config, given)
    history = train_loop.run(
        stage,
        trainer,
        config,
        lambda: train(
            trainer, cache, config, micro_batch=stage.micro_batch, autocast=stage.autocast
        ),
        lambda step: stage.preview("samples", model=trainer.ema, info=info, step=step),
    )
    save_mar(stage.out / "generator.safetensors", model, info.tokenizer)
    save_mar(stage.out / "ema.safetensors", trainer.ema, info.tokenizer)
    metrics: dict[str, float] = {
        "steps": config.steps,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    for last in history[-1:]:  # none where no step was taken
        metrics["loss"] = last["loss"]
    stage.write_metrics(metrics)


if __name__ == "__main__":
    run(main)
