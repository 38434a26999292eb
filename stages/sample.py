"""Generate images with the trained generator."""

import sys
import time
from pathlib import Path

import torch
from PIL.Image import Image

from mar.data.class_names import read_class_names
from mar.evaluation.image_grid import label_grid
from mar.files import atomic, seal
from mar.latents.info import LatentsInfo
from mar.model.mar import load_mar
from mar.sampling.generate import SampleConfig, balanced_labels
from mar.sampling.images import generate_images
from mar.sampling.labels import resolve_labels
from mar.sampling.reach import Reach
from mar.sampling.store import SampleSet, shard_path, write_shard
from mar.tokenizers.registry import load_tokenizer
from stages import pictures
from stages.generation_progress import generation_bar, step_counter
from stages.stage import Stage, read_count, run


INFO = Path("out/encode/latents.json")
TOKENIZER = Path("out/train_tokenizer/tokenizer.safetensors")
GENERATOR = Path("out/train_generator/ema.safetensors")
CLASSES = Path("out/prepare/classes.json")
SHOWN = 100  # images in the grid


def main(stage: Stage) -> None:
    """Write the shards that are not there yet, then the grid."""
    config = stage.params("sample", SampleConfig)
    torch.set_float32_matmul_precision("high")  # the denoiser's products, on GPUs: TensorFloat32
    info = LatentsInfo.read(INFO)
    digest = seal.digest(TOKENIZER)
    info.check({"tokenizer": digest})
    model = load_mar(GENERATOR, digest).to(stage.device)
    decoder = load_tokenizer(TOKENIZER).to(stage.device)
    class_names = read_class_names(CLASSES)
    chosen = resolve_labels(config.labels, class_names)
    if chosen is not None:
        described = ", ".join(f"{label} ({class_names[label]})" for label in chosen)
        sys.stderr.write(f"{stage.name}: images of the classes {described}\n")
    labels = balanced_labels(config.num_images, chosen, model.num_classes)
    batch_size = read_count("MAR_SAMPLE_BATCH", 256, least=1)
    folder = stage.work / "samples"
    started, generated = time.monotonic(), 0
    reach = Reach(info.largest, info.latent_std)

    shards = torch.arange(config.num_images).split(config.shard_images)
    paths = [shard_path(folder, number) for number in range(len(shards))]
    written = [stage.is_made(path) for path in paths]
    done = sum(len(shard) for shard, whole in zip(shards, written, strict=True) if whole)
    with generation_bar(stage.name, config.num_images, done) as progress:
        for path, shard, whole in zip(paths, shards, written, strict=True):
            if not whole:
                batches = []
                for indices in shard.split(batch_size):
                    batch = generate_images(
                        model,
                        decoder,
                        labels[indices],
                        indices.tolist(),
                        config,
                        latent_std=info.latent_std,
                        autocast=stage.autocast,
                        on_step=step_counter(progress, len(indices), model.num_tokens),
                        on_latents=reach.update,
                    )
                    batches.append(batch)
                    generated += len(batch)
                write_shard(
                    path,
                    torch.cat(batches),
                    labels=labels[shard],
                    first_index=int(shard[0]),
                    num_classes=model.num_classes,
                )
    if warning := reach.warning():
        sys.stderr.write(f"{stage.name}: {warning}\n")
    # Of this start alone: an earlier one, that was killed, may have made some or all.
    speed = generated / (time.monotonic() - started) if generated else None
    stage.log_speeds(images_per_second=speed)
    atomic.publish_folder(folder, stage.out / "samples")
    stage.write_metrics({"num_images": config.num_images})
    pictures.save(stage, stage.out / "grid.png", lambda: _grid(stage.out / "samples", class_names))


def _grid(folder: Path, class_names: list[str]) -> Image:
    samples = SampleSet(folder)
    shown = range(min(SHOWN, len(samples)))
    return label_grid(
        torch.stack([samples[index] for index in shown]),
        samples.labels[: len(shown)],
        class_names=class_names,
        columns=10,
    )


if __name__ == "__main__":
    run(main)
