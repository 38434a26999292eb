"""Before a training of days: whether cached latents are those of their images, with a picture.

It can stop a training and never change what it makes: nothing is computed from it, and torch's
random numbers are left as they were.
"""

import math
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mar.evaluation.image_grid import comparison_grid
from mar.evaluation.reconstruction_metrics import difference
from mar.latents.cache import LatentCache
from mar.latents.scale import outliers_warning
from mar.tokenizers import comparison as preflight
from mar.tokenizers.interface import Tokenizer
from mar.tokenizers.registry import load_tokenizer
from stages import pictures, previews
from stages.images import open_images
from stages.stage import Stage


MANIFEST = Path("out/prepare/manifest.parquet")


def check(stage: Stage, *, cache: LatentCache, weights: Path, image_size: int) -> dict[str, float]:
    """Compare some cached latents with their images, draw them, and return the PSNRs.

    Where the images are not on this machine, it says so and draws what the latents decode to; where
    there are no latents (`data.source: none`) there is nothing to draw.

    Raises:
        ValueError: latents and images do not belong together.
    """
    if warning := outliers_warning(cache.largest(), cache.names):
        sys.stderr.write(f"{stage.name}: {warning}\n")
    if not len(cache):
        nothing = torch.empty(0, 3, image_size, image_size, dtype=torch.uint8)
        _draw(stage, {"no images to look at": nothing})
        return {}
    with torch.random.fork_rng(devices=[]):  # layers draw weights before theirs are loaded
        model = load_tokenizer(weights).to(stage.device)
    chosen = preflight.choose(len(cache))
    rows: dict[int, int] = {}
    images = None
    if MANIFEST.is_file():
        images = open_images(stage, MANIFEST, "train", image_size)
        places = preflight.rows_of_manifest(cache, images.names, images.labels)
        rows = {index: int(places[index]) for index in chosen}
        rows = {index: row for index, row in rows.items() if images.is_present(row)}
    if absent := len(chosen) - len(rows):
        sys.stderr.write(
            f"{stage.name}: {absent} of {len(chosen)} images are not on this machine, so their "
            "cached latents are not compared with them\n"
        )
    if images is None or not rows:
        latents = preflight.read(cache, chosen, mirrored=False, content="latents")
        decoded = preflight.decode_stored(model, latents.to(stage.device), cache.info.latent_std)
        _draw(stage, {"decoded from the cache": decoded})
        preflight.check_scale(cache, chosen)
        return {}
    return _compare(stage, model, cache, list(rows), images.stack(list(rows.values())))


def _compare(
    stage: Stage, model: Tokenizer, cache: LatentCache, chosen: list[int], images: Tensor
) -> dict[str, float]:
    """Compare all that a generator may see: mirror images as well, and codes where there are."""
    flips = {"images": False} | ({"mirror images": True} if cache.info.flips else {})
    contents = ("latents", "codes") if cache.info.codebook_size is not None else ("latents",)
    compared = {
        (what, content): preflight.compare(
            model, cache, chosen, images, mirrored=mirrored, content=content
        )
        for what, mirrored in flips.items()
        for content in contents
    }
    shown: dict[str, Tensor] = {}
    for (what, content), found in compared.items():
        shown[what] = found.originals
        shown[f"{what}, decoded from cached {content}"] = found.cached
        shown[f"{what}, differences from cached {content}, 4 x"] = difference(
            found.originals, found.cached, gain=4
        )
    _draw(stage, shown)
    for (what, _), found in compared.items():
        found.check(what)
    preflight.check_scale(cache, chosen)
    plain = compared["images", "latents"]
    if warning := plain.poor_tokenizer_warning():
        sys.stderr.write(f"{stage.name}: {warning}\n")
    return {name: value for name, value in plain.psnr().items() if math.isfinite(value)}


def _draw(stage: Stage, rows: Mapping[str, Tensor]) -> None:
    path = previews.folder(stage) / "preflight.png"
    pictures.save(stage, path, lambda: comparison_grid(rows))
