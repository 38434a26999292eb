"""Train MAR on the cached latents."""

from functools import partial
from pathlib import Path

from mar.activation_checkpointing import set_checkpointing
from mar.files import seal
from mar.latents.cache import LatentCache
from mar.latents.info import TRANSFORM, LatentsInfo, latent_std
from mar.model.compilation import compile_blocks
from mar.model.conditions import TextShape
from mar.model.flops import mfu
from mar.model.mar import MAR
from mar.model.saved import save_mar
from mar.released.generator import GeneratorSource, fitted
from mar.text.cache import TextCache
from mar.text.encoder import TextEncoder
from mar.text.registry import load_encoder
from mar.training.generator import (
    InitialWeights,
    TrainingConfig,
    broken_samples,
    new_trainer,
    train,
)
from stages import released, train_loop
from stages.snapshots import Snapshots
from stages.stage import Stage, run


ENCODER = Path("out/encode_text/encoder.json")
TEXTS = Path("out/encode_text/texts")
LATENTS = Path("out/encode/latents")
TOKENIZER = Path("out/train_tokenizer/tokenizer.safetensors")


def main(stage: Stage) -> None:
    """Train, and write the raw weights and their averages, and curves."""
    config = stage.params("training", TrainingConfig)
    section = stage.params("generator", GeneratorSource)
    info = _latents_info(stage)
    encoder = load_encoder(ENCODER, base=stage.root)
    model = _build_model(stage, section, info, encoder)
    given = _initial_weights(stage, section, model)
    cache = LatentCache(LATENTS, info, on_device=stage.cache_on_device)
    texts = encoder and TextCache.open(TEXTS, encoder.to(stage.device), section.condition_tokens)
    if texts is not None and texts.names != cache.names:
        raise ValueError(f"{TEXTS} holds captions of other images than {LATENTS} latents")
    stage.preflight(cache=cache, weights=TOKENIZER, image_size=stage.params("data.image_size", int))
    trainer = new_trainer(model.to(stage.device), config, given, parallel=stage.parallel)
    snapshots = Snapshots(stage, trainer, config.averages)

    def preview(step: int) -> None:
        if (ema := trainer.whole_ema()) is not None:
            stage.preview("samples", model=ema, info=info, step=step)

    history = train_loop.run(
        stage,
        trainer,
        partial(
            train,
            trainer,
            cache,
            config,
            micro_batch=stage.micro_batch,
            autocast=stage.autocast,
            texts=texts,
        ),
        preview,
        broken_samples=partial(
            broken_samples, trainer, cache, config, autocast=stage.autocast, texts=texts
        ),
        after_step=snapshots.keep,
        other_bytes=snapshots.missing_bytes,
        mfu=lambda rate: mfu(model, config.batch_size, rate, stage.device),
    )
    for name, whole in (("generator", trainer.whole_model), ("ema", trainer.whole_ema)):
        if (found := whole()) is not None:
            save_mar(stage.out / f"{name}.safetensors", found, info.tokenizer)
    snapshots.publish()
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    losses = [point["loss"] for point in history if "loss" in point]
    last = {"loss": losses[-1]} if losses else {}  # none if no step was taken
    stage.write_metrics({"steps": config.steps, "parameters": num_parameters, **last})


def _latents_info(stage: Stage) -> LatentsInfo:
    """Return what is known of the cached latents, which must be of the present settings."""
    info = LatentsInfo.read(LATENTS.with_suffix(".json"))
    info.check(
        {
            "tokenizer": seal.digest(TOKENIZER),
            "transform": TRANSFORM.format(size=stage.params("data.image_size", int)),
            "dtype": stage.params("latents.dtype", str),
            "flips": stage.params("latents.flips", bool),
            "latent_std": latent_std(stage.params("latents.scale", float | None), info.std),
        }
    )
    return info


def _build_model(
    stage: Stage, section: GeneratorSource, info: LatentsInfo, encoder: TextEncoder | None
) -> MAR:
    """Build the generator, with checkpointing and compilation as the stage has them."""
    text = encoder and TextShape(encoder.token_kind, encoder.size, encoder.identity)
    model = MAR(section, info.latent, info.num_classes, info.codebook_size, text=text)
    set_checkpointing(model, stage.checkpointing)
    if stage.compiles:
        compile_blocks(model)
    return model


def _initial_weights(stage: Stage, section: GeneratorSource, model: MAR) -> InitialWeights | None:
    """Return released weights to begin with; None for random ones."""
    if section.source != "released":
        return None
    found = released.read(stage, "generator", section, model)
    return InitialWeights(
        fitted(section.to_ours(found.chosen), model), fitted(section.to_ours(found.model), model)
    )


if __name__ == "__main__":
    run(main)
