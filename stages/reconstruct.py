"""Reconstruct the held-out images, to see what the tokenizer loses."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL.Image import Image
from torch import Tensor
from tqdm import tqdm

from mar import distributed
from mar.data.dataset import ImageSet
from mar.data.workers import map_chunks, ranges
from mar.evaluation import lpips
from mar.evaluation.extractor_registry import ReferenceConfig
from mar.evaluation.image_grid import comparison_grid
from mar.evaluation.lpips import LPIPSConfig, LPIPSScore
from mar.evaluation.real_images import RealImages
from mar.evaluation.reconstruction_metrics import (
    Measured,
    PairScores,
    ReconstructionDistance,
    difference,
)
from mar.files.downloads import find_download
from mar.latents.posterior import Posterior
from mar.latents.scale import LatentStatistics
from mar.tokenizer_training.perceptual import PerceptualConfig
from mar.tokenizers.codebook import CodebookUse
from mar.tokenizers.codec import reconstruct
from mar.tokenizers.interface import Tokenizer
from mar.tokenizers.registry import load_tokenizer
from stages import pictures
from stages.images import open_images
from stages.stage import Stage, run


MANIFEST = Path("out/prepare/manifest.parquet")
TOKENIZER = Path("out/train_tokenizer/tokenizer.safetensors")
REFERENCE = Path("out/reference/extractor")
SHOWN = 10  # images in the picture


def main(stage: Stage) -> None:
    """Score reconstructions of the held-out split and draw some beside their originals."""
    image_size = stage.params("data.image_size", int)
    model = load_tokenizer(TOKENIZER).to(stage.device)
    images = open_images(stage, MANIFEST, "held_out", image_size)
    section = stage.params("reference", ReferenceConfig)
    size = {"height": image_size, "width": image_size}
    real = RealImages.load(REFERENCE, section, base=stage.root, **size)

    distance = ReconstructionDistance(real.extractor, real.reference.statistics, stage.device)
    scores = PairScores([distance, *_lpips(stage, image_size)])
    use = CodebookUse(model.codebook_size)
    latents = LatentStatistics(model.latent_channels)
    for part in _measure(stage, model, images, scores):
        scores.add(part.scores)
        latents.update(part.posterior)
        use.update(part.codes)
    if not distributed.is_main():
        return
    stage.warn(distance.count_warnings())
    stage.write_metrics(
        {
            **scores.compute(),
            **use.compute(),
            "latents": latents.summary(),
            "extractor": real.info.extractor,
            "reference": real.info.id,
            "num_reference": real.info.num_reference,
            "num_images": len(images),
        }
    )
    path = stage.out / "reconstructions.png"
    pictures.save(stage, path, lambda: _comparison(model, images))


class Part(NamedTuple):
    """What is measured of some images, on the CPU."""

    scores: Measured
    posterior: Posterior
    codes: Tensor | None


def _measure(
    stage: Stage, model: Tokenizer, images: ImageSet, scores: PairScores
) -> Iterator[Part]:
    """Yield what is measured of all images, in the main process; the others do their share."""
    chunks = ranges(len(images), 64)
    is_main = distributed.is_main()
    for part in tqdm(
        distributed.interleave(_measure_share(stage, model, images, scores, chunks), len(chunks)),
        total=len(chunks),
        desc=stage.name,
        unit="batch",
        disable=not is_main,
    ):
        if is_main:
            yield part


def _measure_share(
    stage: Stage, model: Tokenizer, images: ImageSet, scores: PairScores, chunks: list[list[int]]
) -> Iterator[Part]:
    mine = distributed.share(chunks)
    for chunk, batch in zip(mine, map_chunks(images.stack, mine, stage.workers), strict=True):
        seen: list[Posterior] = []
        restored = reconstruct(model, batch, seen.append)
        codes, log_variance = model.quantise(seen[0].mean), seen[0].log_variance
        yield Part(
            scores.measure(batch, restored, chunk[0]),
            Posterior(
                seen[0].mean.cpu().contiguous(),  # a view would be sent with all that it is of
                None if log_variance is None else log_variance.cpu(),
            ),
            None if codes is None else codes.cpu(),
        )


def _lpips(stage: Stage, image_size: int) -> list[LPIPSScore]:
    """Return LPIPS where its weights are: those of the tokenizer's training, or an earlier
    download.
    """
    config = stage.params("tokenizer_training.perceptual", PerceptualConfig)
    if image_size < lpips.SMALLEST:
        return []
    key = "tokenizer_training.perceptual.weights"
    try:
        if isinstance(config, LPIPSConfig):
            path, sha256 = config.weights, config.weights_sha256
        elif (found := distributed.from_main(lambda: find_download(lpips.FILE))) is not None:
            path, sha256 = str(found), None
        else:
            return []
        network = lpips.load(path, sha256, key=key, base=stage.root)
    except ValueError as error:  # a tokenizer that was trained elsewhere can do without
        stage.warn([f"no LPIPS: {error}"])
        return []
    return [LPIPSScore(network.to(stage.device))]


def _comparison(model: Tokenizer, images: ImageSet) -> Image:
    originals = images.spread(SHOWN)
    restored = reconstruct(model, originals)
    rows = {
        "originals": originals,
        "reconstructions": restored,
        "differences, 4 x": difference(originals, restored, gain=4),
    }
    return comparison_grid(rows)


if __name__ == "__main__":
    run(main)
