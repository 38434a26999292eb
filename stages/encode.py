"""Encode the training images into a cache of latents."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from mar import atomic, latents, tokenizer
from mar.data import ImageSet
from mar.data_config import DataConfig
from mar.images import to_float
from mar.latents import TRANSFORM, LatentsConfig, LatentsInfo
from mar.parallel import map_chunks
from stages.stage import Stage, run


MANIFEST = Path("out/prepare/manifest.parquet")
TOKENIZER = Path("out/train_tokenizer/tokenizer.safetensors")
CHUNK = 16  # images that a worker decodes at a time


def main(stage: Stage) -> None:
    """Write the shards that are not there yet, then measure the scale of all latents."""
    data = stage.params("data", DataConfig)
    config = stage.params("latents", LatentsConfig)
    model = tokenizer.load(TOKENIZER).to(stage.device)
    images = ImageSet(MANIFEST, "train", data.image_size)
    images.verify_listing()
    shape = tokenizer.latent_shape(model.config, data.image_size)
    folder = stage.work / "latents"
    names = images.names
    for path, indices, pixels in _missing_shards(stage, images, config, folder):
        latents.write_shard(
            path,
            _encode(stage, model, pixels, config.batch_size),
            _encode(stage, model, pixels.flip(3), config.batch_size) if config.flips else None,
            labels=images.labels[indices],
            names=[names[index] for index in indices],
            dtype=config.dtype,
        )
    measured = latents.measure(folder, shape)
    info = LatentsInfo(
        tokenizer=atomic.digest(TOKENIZER),
        transform=TRANSFORM.format(size=data.image_size),
        dtype=config.dtype,
        flips=config.flips,
        num_classes=images.num_classes,
        shape=[shape.channels, shape.height, shape.width],
        **measured,
    )
    atomic.move_folder(folder, stage.out / "latents")
    atomic.write_json(stage.out / "latents.json", info.model_dump())
    stage.write_metrics({key: measured[key] for key in ("count", "mean", "std")})


def _missing_shards(
    stage: Stage, images: ImageSet, config: LatentsConfig, folder: Path
) -> Iterator[tuple[Path, list[int], Tensor]]:
    """Yield path, image indices and pixels of each shard that an earlier start has not written."""
    parts = torch.arange(len(images)).split(config.shard_images)
    missing = [
        (folder / f"{number:05d}.arrow", part.tolist())
        for number, part in enumerate(parts)
        if not (folder / f"{number:05d}.arrow").is_file()
    ]
    chunks = [part[i : i + CHUNK] for _, part in missing for i in range(0, len(part), CHUNK)]
    decoded = map_chunks(images.stack, chunks, stage.workers)
    done = len(images) - sum(len(part) for _, part in missing)
    with tqdm(total=len(images), initial=done, desc=stage.name, unit="image") as progress:
        for path, part in missing:
            pixels: list[Tensor] = []
            while sum(map(len, pixels)) < len(part):
                pixels.append(next(decoded).clone())
                progress.update(len(pixels[-1]))
            yield path, part, torch.cat(pixels)


def _encode(stage: Stage, model: tokenizer.Tokenizer, pixels: Tensor, batch_size: int) -> Tensor:
    with torch.no_grad():
        parts = [model.encode(to_float(p.to(stage.device))).cpu() for p in pixels.split(batch_size)]
    return torch.cat(parts)


if __name__ == "__main__":
    run(main)
