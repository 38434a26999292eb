"""Encode the captions of the images for the generator."""

import sys
from itertools import chain
from pathlib import Path

from mar.data.manifest import Manifest
from mar.files import atomic
from mar.text.cache import CaptionedImages, write_texts
from mar.text.encoder import TextEncoder
from mar.text.registry import TextConfig, save_encoder
from stages.stage import Stage, run


MANIFEST = Path("out/prepare/manifest.parquet")


def main(stage: Stage) -> None:
    """Write the encoder and the tokens of all captions; without section `text`, nothing in them."""
    section = stage.params("text", TextConfig | None)
    count = stage.params("generator.condition_tokens", int)
    encoder, splits = None, {}
    if section is not None:
        splits = {split: _captions(split) for split in ("train", "held_out")}
        encoder = section.learn(chain(*splits["train"].captions))
    folder = stage.work / "texts"
    folder.mkdir(parents=True, exist_ok=True)
    write_texts(folder, encoder, splits)
    atomic.publish_folder(folder, stage.out / "texts")
    save_encoder(stage.out / "encoder.json", section, encoder)
    metrics = {"num_captions": 0, "num_words": 0, "share_cut": 0.0}
    if encoder is not None:
        metrics = _measure(encoder, splits["train"], count)
        sys.stderr.write(
            f"{stage.name}: {metrics['num_captions']} captions to train on, {metrics['num_words']} "
            f"words; {metrics['share_cut']:.1%} of the captions have more than {count} tokens "
            "(generator.condition_tokens) and are cut\n"
        )
    stage.write_metrics(metrics)


def _captions(split: str) -> CaptionedImages:
    manifest = Manifest(MANIFEST, "train" if split == "train" else "held_out")
    captions = manifest.captions()
    if captions is None:
        raise ValueError("text: must be null, as the images of data.source have no captions")
    return CaptionedImages(manifest.paths(), captions)


def _measure(encoder: TextEncoder, images: CaptionedImages, count: int) -> dict[str, int | float]:
    lengths = [len(encoder.tokenise(text)[0]) for each in images.captions for text in each]
    return {
        "num_captions": len(lengths),
        "num_words": encoder.size,
        "share_cut": sum(length > count for length in lengths) / len(lengths),
    }


if __name__ == "__main__":
    run(main)
