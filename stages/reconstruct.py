"""Reconstruct the held-out images, to see what the tokenizer loses."""

import sys
from pathlib import Path

from tqdm import tqdm

from mar import extractors, lpips, tokenizer
from mar.codebook import CodebookUse
from mar.data import ImageSet
from mar.data_config import DataConfig
from mar.extractors import ReferenceConfig
from mar.latent_scale import LatentStatistics
from mar.lpips import LPIPSConfig, LPIPSScore
from mar.pair_scores import difference, score
from mar.parallel import map_chunks, ranges
from mar.pictures import comparison_grid, save_png
from mar.posterior import Posterior
from mar.reconstruction import reconstruct
from mar.reference import Reference, ReferenceInfo
from mar.rfid import ReconstructionDistance
from mar.tokenizer_interface import Tokenizer
from mar.tokenizer_training import TokenizerTrainingConfig
from mar.weight_files import kept
from stages.stage import Stage, run


MANIFEST = Path("out/prepare/manifest.parquet")
TOKENIZER = Path("out/train_tokenizer/tokenizer.safetensors")
REFERENCE = Path("out/reference/extractor")
SHOWN = 10  # images in the picture


def main(stage: Stage) -> None:
    """Score reconstructions of the held-out split and draw some beside their originals."""
    data = stage.params("data", DataConfig)
    model = tokenizer.load(TOKENIZER).to(stage.device)
    images = ImageSet(MANIFEST, "held_out", data.image_size, base=stage.root)
    images.verify_listing()
    info = ReferenceInfo.read(REFERENCE / "reference.json")
    extractor = extractors.load(
        stage.params("reference", ReferenceConfig), REFERENCE, base=stage.root
    )
    info.check(extractor, height=data.image_size, width=data.image_size)
    train = Reference.load(REFERENCE / "statistics.safetensors").statistics

    chunks = ranges(len(images), 64)
    decoded = map_chunks(images.stack, chunks, stage.workers)
    batches = tqdm(decoded, total=len(chunks), desc=stage.name, unit="batch")
    use = CodebookUse(model.codebook_size)
    latents = LatentStatistics(model.latent_channels)
    distance = ReconstructionDistance(extractor, train, stage.device)
    measures = [distance, *_lpips(stage, data.image_size)]

    def watch(posterior: Posterior) -> None:
        latents.update(posterior)
        use.update(model.quantise(posterior.mean))

    pairs = ((batch, reconstruct(model, batch, watch)) for batch in batches)
    scores = score(pairs, measures)
    if warning := distance.find_bias():
        sys.stderr.write(f"{stage.name}: {warning}\n")
    _draw(stage, model, images)
    stage.write_metrics(
        {
            **scores,
            **use.compute(),
            "latents": latents.summary(),
            "extractor": info.extractor,
            "reference": info.id,
            "num_reference": info.num_reference,
            "num_images": len(images),
        }
    )


def _lpips(stage: Stage, image_size: int) -> list[LPIPSScore]:
    """Return LPIPS where its weights are: those of the tokenizer's training, or an earlier
    download.
    """
    config = stage.params("tokenizer_training", TokenizerTrainingConfig).perceptual
    if image_size < lpips.SMALLEST:
        return []
    key = "tokenizer_training.perceptual.weights"
    try:
        if isinstance(config, LPIPSConfig):
            path, sha256 = config.weights, config.weights_sha256
        elif (found := kept(lpips.FILE)) is not None:
            path, sha256 = str(found), None
        else:
            return []
        network = lpips.load(path, sha256, key=key, base=stage.root)
    except ValueError as error:  # a tokenizer that was trained elsewhere can do without
        sys.stderr.write(f"{stage.name}: no LPIPS: {error}\n")
        return []
    return [LPIPSScore(network.to(stage.device))]


def _draw(stage: Stage, model: Tokenizer, images: ImageSet) -> None:
    originals = images.spread(SHOWN)
    restored = reconstruct(model, originals)
    rows = {
        "originals": originals,
        "reconstructions": restored,
        "differences, 4 x": difference(originals, restored, gain=4),
    }
    picture = stage.out / "reconstructions.png"
    save_png(picture, comparison_grid(rows))
    stage.run.picture(picture)


if __name__ == "__main__":
    run(main)
