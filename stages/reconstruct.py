"""Reconstruct the held-out images, to see what the tokenizer loses."""

from pathlib import Path

from tqdm import tqdm

from mar import tokenizer
from mar.codebook import CodebookUse
from mar.data import ImageSet
from mar.data_config import DataConfig
from mar.parallel import map_chunks, ranges
from mar.pictures import comparison_grid, save_png
from mar.reconstruction import difference, reconstruct, score
from stages.stage import Stage, run


MANIFEST = Path("out/prepare/manifest.parquet")
TOKENIZER = Path("out/train_tokenizer/tokenizer.safetensors")
SHOWN = 10  # images in the picture


def main(stage: Stage) -> None:
    """Score reconstructions of the held-out split and draw some beside their originals."""
    data = stage.params("data", DataConfig)
    model = tokenizer.load(TOKENIZER).to(stage.device)
    images = ImageSet(MANIFEST, "held_out", data.image_size, base=stage.root)
    images.verify_listing()
    chunks = ranges(len(images), 64)
    decoded = map_chunks(images.stack, chunks, stage.workers)
    batches = tqdm(decoded, total=len(chunks), desc=stage.name, unit="batch")
    use = CodebookUse(model.codebook_size)
    scores = score((batch, reconstruct(model, batch, use)) for batch in batches)

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
    stage.write_metrics({**scores, **use.compute(), "num_images": len(images)})


if __name__ == "__main__":
    run(main)
