"""Encode the training images into a cache of latents."""

import sys
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mar import distributed
from mar.data.dataset import ImageSet
from mar.data.workers import map_chunks, ranges
from mar.files import atomic, seal
from mar.latents.cache import image_bytes, measure_latents, write_latents
from mar.latents.info import TRANSFORM, LatentsConfig, LatentsInfo, latent_std
from mar.latents.scale import (
    UNMEASURED,
    check_latent_std,
    check_scale,
    outliers_warning,
    weak_channels_warning,
)
from mar.precision import check_precision, one_thread
from mar.tokenizers.codec import EncodedImages, concatenate, encode_images, encoder, precision_error
from mar.tokenizers.interface import Tokenizer
from mar.tokenizers.registry import latent_shape, load_tokenizer
from stages.disk import room
from stages.images import open_images
from stages.stage import Stage, run


MANIFEST = Path("out/prepare/manifest.parquet")
TOKENIZER = Path("out/train_tokenizer/tokenizer.safetensors")
BATCHES = 8  # that a process encodes until it meets the others

Shard = tuple[Path, list[int]]  # a file of the cache, and the indices of its images


def main(stage: Stage) -> None:
    """Write the shards that are not there yet, then measure and judge the scale of all latents.

    Each process writes every n-th of them, and the first one does the rest.
    """
    image_size = stage.params("data.image_size", int)
    config = stage.params("latents", LatentsConfig)
    check_precision(config.precision, stage.device, "latents.precision")
    model = load_tokenizer(TOKENIZER).to(stage.device)
    images = open_images(stage, MANIFEST, "train", image_size)
    folder = stage.work / "latents"
    folder.mkdir(parents=True, exist_ok=True)
    missing = _missing_shards(stage, images, config, folder)
    effect = distributed.from_main(lambda: _announce(stage, model, images, config, folder, missing))
    done = len(images) - sum(len(part) for _, part in missing)
    with tqdm(
        total=len(images),
        initial=done,
        desc=stage.name,
        unit="image",
        disable=not distributed.is_main(),
    ) as progress:
        for count in _in_step(_encode(stage, model, images, config, missing)):
            progress.update(count)
    distributed.from_main(lambda: _finish(stage, model, images, config, folder, effect))


def _missing_shards(
    stage: Stage, images: ImageSet, config: LatentsConfig, folder: Path
) -> list[Shard]:
    """Return path and image indices of each shard that is not written yet, in every process."""
    parts = ranges(len(images), config.shard_images)
    shards = [(folder / f"{n:05d}.arrow", part) for n, part in enumerate(parts)]
    mine = [shard for shard in distributed.share(shards) if not stage.is_made(shard[0])]
    return sorted(chain.from_iterable(distributed.gather(mine)))


def _announce(
    stage: Stage,
    model: Tokenizer,
    images: ImageSet,
    config: LatentsConfig,
    folder: Path,
    missing: list[Shard],
) -> float:
    """Say what the cache takes of the disk and what its arithmetic does; return the latter.

    Raises:
        ValueError: the disk has no room.
    """
    if missing:
        _, first = missing[0]
        encoded = encode_images(model, images.stack(first[:1]))
        each = image_bytes(encoded.moments, encoded.code_indices, config, model.codebook_size)
        need = each * sum(len(part) for _, part in missing)
        sys.stderr.write(f"{stage.name}: {room(each, len(images), need, folder)}\n")
        if folder.stat().st_dev != stage.out.parent.stat().st_dev:  # no links there, but a copy
            room(each, len(images), each * len(images), stage.out.parent)
    if config.precision == "float32" or not len(images):
        return 0.0
    effect = precision_error(model, images.spread(config.batch_size), config.precision)
    sys.stderr.write(
        f"{stage.name}: {config.precision} moves latents by {effect:.2g} of their root mean "
        "square from those of float32\n"
    )
    return effect


def _encode(
    stage: Stage,
    model: Tokenizer,
    images: ImageSet,
    config: LatentsConfig,
    missing: list[Shard],
) -> Iterator[int]:
    """Write this process's share of the missing shards, yielding the size of each batch."""
    mine, names = distributed.share(missing), images.names
    size = config.batch_size
    cut = [part[i : i + size] for _, part in mine for i in range(0, len(part), size)]
    decoded = map_chunks(images.stack, cut, stage.workers)
    with encoder(model, config.precision) as encode:
        for path, indices in mine:
            plain: list[EncodedImages] = []
            mirrored: list[EncodedImages] = []
            # Encoded at once: the pixels of a shard can be gigabytes.
            for pixels in islice(decoded, -(-len(indices) // size)):
                plain.append(encode(pixels))
                mirrored += [encode(pixels.flip(3))] if config.flips else []
                yield len(pixels)
            _write(path, plain, mirrored, images, indices, names, config, model.codebook_size)


def _in_step(counts: Iterator[int]) -> Iterator[int]:
    """Yield how many images all processes have encoded since, until each of them has ended.

    They meet every few batches, so that none waits for another for long, and a mistake that one
    meets ends all of them.

    Raises:
        ValueError: a process raised one; all do.
        OSError: likewise.
    """
    batches = BATCHES if distributed.num_processes() > 1 else 1
    while True:
        outcome: int | Exception
        try:
            outcome = sum(islice(counts, batches))
        except (ValueError, OSError) as error:
            outcome = distributed.portable(error)
        total = 0
        for found in distributed.gather(outcome):
            if isinstance(found, Exception):
                raise found
            total += found
        if not total:
            return
        yield total


def _finish(
    stage: Stage,
    model: Tokenizer,
    images: ImageSet,
    config: LatentsConfig,
    folder: Path,
    effect: float,
) -> None:
    """Measure and judge the scale of all latents, and write the outputs.

    Raises:
        ValueError: they cannot be trained on.
    """
    shape = latent_shape(model.config, images.image_size)
    with one_thread():
        measured = measure_latents(folder, shape)
    if warning := outliers_warning(measured.largest(), images.names):
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
        transform=TRANSFORM.format(size=images.image_size),
        dtype=config.dtype,
        flips=config.flips,
        num_classes=images.num_classes,
        class_counts=images.labels.bincount(minlength=images.num_classes).tolist(),
        codebook_size=model.codebook_size,
        shape=[shape.channels, shape.height, shape.width],
        latent_std=divided_by,
        **scale,
    )
    atomic.publish_folder(folder, stage.out / "latents")
    info.write(stage.out / "latents.json")
    stage.write_metrics(
        {
            "count": info.count,
            "latent_std": divided_by,
            "precision_error": effect,
            **measured.summary(),
        }
    )


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
