"""Encode the training images into a cache of latents."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mar import atomic, latents, tokenizer
from mar.data import ImageSet
from mar.data_config import DataConfig
from mar.images import to_float
from mar.latent_scale import UNMEASURED, check_divisor, check_scale, find_weak_channels
from mar.latents import TRANSFORM, LatentsConfig, LatentsInfo
from mar.parallel import map_chunks
from mar.posterior import Posterior
from mar.tokenizer_interface import Tokenizer
from stages.stage import Stage, run


MANIFEST = Path("out/prepare/manifest.parquet")
TOKENIZER = Path("out/train_tokenizer/tokenizer.safetensors")
CHUNK = 16  # images that a worker decodes at a time


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
    folder.mkdir(exist_ok=True)
    for path, indices, pixels in _missing_shards(stage, images, config, folder):
        moments, codes = _encode(stage, model, pixels, config.batch_size)
        mirrored, mirrored_codes = None, None
        if config.flips:
            mirrored, mirrored_codes = _encode(stage, model, pixels.flip(3), config.batch_size)
        latents.write_shard(
            path,
            moments,
            mirrored,
            labels=images.labels[indices],
            names=[names[index] for index in indices],
            dtype=config.dtype,
            codebook_size=model.codebook_size,
            indices=codes,
            mirrored_indices=mirrored_codes,
        )
    measured = latents.measure(folder, shape)
    if measured.count:
        check_scale(measured)
        if warning := find_weak_channels(measured):
            sys.stderr.write(f"{stage.name}: {warning}\n")
        std = measured.scale()["std"]
        check_divisor(std, config.divisor(std), "latents.scale")
    scale: dict[str, Any] = {**(measured.scale() if measured.count else UNMEASURED)}
    info = LatentsInfo(
        tokenizer=atomic.digest(TOKENIZER),
        transform=TRANSFORM.format(size=data.image_size),
        dtype=config.dtype,
        flips=config.flips,
        num_classes=images.num_classes,
        codebook_size=model.codebook_size,
        shape=[shape.channels, shape.height, shape.width],
        divisor=config.divisor(scale["std"]),
        **scale,
    )
    atomic.move_folder(folder, stage.out / "latents")
    atomic.write_json(stage.out / "latents.json", info.model_dump())
    summary = measured.summary() if measured.count else {}
    stage.write_metrics({"count": info.count, "divisor": info.divisor, **summary})


def _missing_shards(
    stage: Stage, images: ImageSet, config: LatentsConfig, folder: Path
) -> Iterator[tuple[Path, list[int], Tensor]]:
    """Yield path, image indices and pixels of each shard that an earlier start has not written."""
    parts = torch.arange(len(images)).split(config.shard_images) if len(images) else []
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


@torch.no_grad()
def _encode(
    stage: Stage, model: Tokenizer, pixels: Tensor, batch_size: int
) -> tuple[Tensor, Tensor | None]:
    """Return the moments of images, and the codes of their latents if there is a codebook."""
    moments: list[Tensor] = []
    codes: list[Tensor] = []
    for part in pixels.split(batch_size):
        encoded = model.encode(to_float(part.to(stage.device)))
        indices = model.quantise(Posterior.of(encoded, model.latent_channels).mean)
        moments.append(encoded.cpu())
        codes += [] if indices is None else [indices.cpu()]
    return torch.cat(moments), torch.cat(codes) if codes else None


if __name__ == "__main__":
    run(main)
