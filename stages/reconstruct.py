"""Reconstruct the held-out images, to see what the tokenizer loses."""

import sys
from pathlib import Path

from PIL.Image import Image
from tqdm import tqdm

from mar.data.dataset import ImageSet
from mar.data.workers import map_chunks, ranges
from mar.evaluation import lpips
from mar.evaluation.extractor_registry import ReferenceConfig
from mar.evaluation.image_grid import comparison_grid
from mar.evaluation.lpips import LPIPSConfig, LPIPSScore
from mar.evaluation.real_images import RealImages
from mar.evaluation.reconstruction_metrics import ReconstructionDistance, difference, score
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

    chunks = ranges(len(images), 64)
    decoded = map_chunks(images.stack, chunks, stage.workers)
    batches = tqdm(decoded, total=len(chunks), desc=stage.name, unit="batch")
    use = CodebookUse(model.codebook_size)
    latents = LatentStatistics(model.latent_channels)
    distance = ReconstructionDistance(real.extractor, real.reference.statistics, stage.device)
    measures = [distance, *_lpips(stage, image_size)]

    def watch(posterior: Posterior) -> None:
        latents.update(posterior)
        use.update(model.quantise(posterior.mean))

    pairs = ((batch, reconstruct(model, batch, watch)) for batch in batches)
    scores = score(pairs, measures)
    if warning := distance.sample_count_warning():
        sys.stderr.write(f"{stage.name}: {warning}\n")
    stage.write_metrics(
        {
            **scores,
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
        elif (found := find_download(lpips.FILE)) is not None:
            path, sha256 = str(found), None
        else:
            return []
        network = lpips.load(path, sha256, key=key, base=stage.root)
    except ValueError as error:  # a tokenizer that was trained elsewhere can do without
        sys.stderr.write(f"{stage.name}: no LPIPS: {error}\n")
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
