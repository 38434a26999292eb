"""Encode the training images into a cache of latents."""

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mar.data.dataset import ImageSet
from mar.data.workers import map_chunks
from mar.files import atomic, seal
from mar.latents.cache import measure_latents, write_latents
from mar.latents.info import TRANSFORM, LatentsConfig, LatentsInfo, latent_std
from mar.latents.scale import (
    UNMEASURED,
    check_latent_std,
    check_scale,
    outliers_warning,
    weak_channels_warning,
)
from mar.tokenizers.codec import EncodedImages, concatenate, encode_images
from mar.tokenizers.registry import latent_shape, load_tokenizer
from stages.images import open_images
from stages.stage import Stage, run


MANIFEST = Path("out/prepare/manifest.parquet")
TOKENIZER = Path("out/train_tokenizer/tokenizer.safetensors")


def main(stage: Stage) -> None:
    """Write the shards that are not there yet, then measure and judge the scale of all latents."""
    image_size = stage.params("data.image_size", int)
    config = stage.params("latents", LatentsConfig)
    model = load_tokenizer(TOKENIZER).to(stage.device)
    images = open_images(stage, MANIFEST, "train", image_size)
    shape = latent_shape(model.config, image_size)
    folder = stage.work / "latents"
    names = images.names
    folder.mkdir(parents=True, exist_ok=True)
    for path, indices, batches in _missing_shards(stage, images, config, folder):
        plain: list[EncodedImages] = []
        mirrored: list[EncodedImages] = []
        for pixels in batches:  # encoded at once: the pixels of a shard can be gigabytes
            plain.append(encode_images(model, pixels).cpu())
            mirrored += [encode_images(model, pixels.flip(3)).cpu()] if config.flips else []
        _write(path, plain, mirrored, images, indices, names, config, model.codebook_size)
    measured = measure_latents(folder, shape)
    if warning := outliers_warning(measured.largest(), names):
        sys.stderr.write(f"{stage.name}: {warning}\n")
    check_scale(measured)
    if warning := weak_channels_warning(measured):
        sys.stderr.write(f"{stage.name}: {warning}\n")
    scale: dict[str, Any] = {**(measured.scale() if measured.count else UNMEASURED)}
    divided_by = latent_std(config.scale, scale["std"])
    if measured.count:
        check_latent_std(scale["std"], divided_by, "latents.scale")
    info = LatentsInfo(
        tokenizer=seal.digest(TOKENIZER),
        transform=TRANSFORM.format(size=image_size),
        dtype=config.dtype,
        flips=config.flips,
        num_classes=images.num_classes,
        codebook_size=model.codebook_size,
        shape=[shape.channels, shape.height, shape.width],
        latent_std=divided_by,
        **scale,
    )
    atomic.publish_folder(folder, stage.out / "latents")
    info.write(stage.out / "latents.json")
    stage.write_metrics({"count": info.count, "latent_std": divided_by, **measured.summary()})


def _missing_shards(
    stage: Stage, images: ImageSet, config: LatentsConfig, folder: Path
) -> Iterator[tuple[Path, list[int], Iterator[Tensor]]]:
    """Yield path, image indices and batches of pixels of each shard that is not written yet."""
    parts = torch.arange(len(images)).split(config.shard_images) if len(images) else []
    shards = [(folder / f"{n:05d}.arrow", part.tolist()) for n, part in enumerate(parts)]
    missing = [(path, part) for path, part in shards if not stage.is_made(path)]
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
    plain: list[EncodedImages],
    mirrored: list[EncodedImages],
    images: ImageSet,
    indices: list[int],
    names: list[str],
    config: LatentsConfig,
    codebook_size: int | None,
) -> None:
    """Write a shard of images and, where they are cached, their mirror images."""
    joined = concatenate(plain)
    flipped = concatenate(mirrored) if mirrored else None
    write_latents(
        path,
        joined.moments,
        flipped and flipped.moments,
        labels=images.labels[indices],
        names=[names[index] for index in indices],
        dtype=config.dtype,
        codebook_size=codebook_size,
        code_indices=joined.code_indices,
        mirrored_code_indices=flipped and flipped.code_indices,
    )


if __name__ == "__main__":
    run(main)
