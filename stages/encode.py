"""Encode the training images into a cache of latents."""

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mar import atomic, latents, tokenizer
from mar.data import ImageSet
from mar.data_config import DataConfig
from mar.encoding import Encoded, encode, join
from mar.latent_scale import UNMEASURED, check_divisor, check_scale, find_weak_channels
from mar.latents import TRANSFORM, LatentsConfig, LatentsInfo
from mar.parallel import map_chunks
from stages.stage import Stage, run


MANIFEST = Path("out/prepare/manifest.parquet")
TOKENIZER = Path("out/train_tokenizer/tokenizer.safetensors")


def main(stage: Stage) -> None:
    """Write the shards that are not there yet, then measure and judge the scale of all latents."""
    data = stage.params("data", DataConfig)
    config = stage.params("latents", LatentsConfig)
    model = tokenizer.load(TOKENIZER).to(stage.device)
    images = ImageSet(MANIFEST, "train", data.image_size, base=stage.root)
    images.verify_listing()
    shape = tokenizer.latent_shape(model.config, data.image_size)
    folder = stage.work / "latents"
    names = images.names
    folder.mkdir(parents=True, exist_ok=True)
    for path, indices, batches in _missing_shards(stage, images, config, folder):
        plain: list[Encoded] = []
        mirrored: list[Encoded] = []
        for pixels in batches:  # encoded at once: the pixels of a shard can be gigabytes
            plain.append(encode(model, pixels))
            mirrored += [encode(model, pixels.flip(3))] if config.flips else []
        _write(path, plain, mirrored, images, indices, names, config, model.codebook_size)
    measured = latents.measure(folder, shape)
    check_scale(measured)
    if warning := find_weak_channels(measured):
        sys.stderr.write(f"{stage.name}: {warning}\n")
    scale: dict[str, Any] = {**(measured.scale() if measured.count else UNMEASURED)}
    divisor = config.divisor(scale["std"])
    if measured.count:
        check_divisor(scale["std"], divisor, "latents.scale")
    info = LatentsInfo(
        tokenizer=atomic.digest(TOKENIZER),
        transform=TRANSFORM.format(size=data.image_size),
        dtype=config.dtype,
        flips=config.flips,
        num_classes=images.num_classes,
        codebook_size=model.codebook_size,
        shape=[shape.channels, shape.height, shape.width],
        divisor=divisor,
        **scale,
    )
    atomic.publish_folder(folder, stage.out / "latents")
    atomic.write_json(stage.out / "latents.json", info.model_dump())
    stage.write_metrics({"count": info.count, "divisor": divisor, **measured.summary()})


def _missing_shards(
    stage: Stage, images: ImageSet, config: LatentsConfig, folder: Path
) -> Iterator[tuple[Path, list[int], Iterator[Tensor]]]:
    """Yield path, image indices and batches of pixels of each shard that is not written yet."""
    parts = torch.arange(len(images)).split(config.shard_images) if len(images) else []
    missing = [
        (folder / f"{number:05d}.arrow", part.tolist())
        for number, part in enumerate(parts)
        if not (folder / f"{number:05d}.arrow").is_file()
    ]
    size = config.batch_size
    chunks = [part[i : i + size] for _, part in missing for i in range(0, len(part), size)]
    decoded = map_chunks(images.stack, chunks, stage.workers)
    done = len(images) - sum(len(part) for _, part in missing)
    with tqdm(total=len(images), initial=done, desc=stage.name, unit="image") as progress:
        for path, part in missing:
            yield path, part, islice(decoded, -(-len(part) // size))
            progress.update(len(part))


def _write(
    path: Path,
    plain: list[Encoded],
    mirrored: list[Encoded],
    images: ImageSet,
    indices: list[int],
    names: list[str],
    config: LatentsConfig,
    codebook_size: int | None,
) -> None:
    """Write a shard of images and, where they are cached, their mirror images."""
    joined = join(plain)
    flipped = join(mirrored) if mirrored else None
    latents.write_shard(
        path,
        joined.moments,
        flipped and flipped.moments,
        labels=images.labels[indices],
        names=[names[index] for index in indices],
        dtype=config.dtype,
        codebook_size=codebook_size,
        indices=joined.codes,
        mirrored_indices=flipped and flipped.codes,
    )


if __name__ == "__main__":
    run(main)
