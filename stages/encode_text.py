"""Encode the captions of the images for the generator."""

from itertools import chain
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mar.data.manifest import Manifest
from mar.files import atomic
from mar.text.cache import CaptionedImages, Captions, write_captions
from mar.text.encoder import TextEncoder
from mar.text.registry import TextConfig, save_encoder
from mar.text.survey import Survey
from mar.text.token_files import file_path, write_tokens
from stages.stage import Stage, run


MANIFEST = Path("out/prepare/manifest.parquet")


def main(stage: Stage) -> None:
    """Write the encoder and the tokens of all captions; without section `text`, nothing in them."""
    section = stage.params("text", TextConfig | None)
    count = stage.params("generator.condition_tokens", int)
    encoder, splits = None, {}
    if section is not None:
        splits = {split: _captions(split) for split in ("train", "held_out")}
        encoder = section.learn(chain(*splits["train"].captions), base=stage.root)
    folder = stage.work / "texts"
    folder.mkdir(parents=True, exist_ok=True)
    write_captions(folder, splits)
    metrics: dict[str, Any] = {"num_captions": 0}
    if encoder is not None:
        captions = Captions(folder)
        survey = Survey(captions, encoder, count)
        stage.warn(survey.remarks())
        _encode(stage, encoder.to(stage.device), captions, count, folder)
        metrics = survey.metrics()
    atomic.publish_folder(folder, stage.out / "texts")
    save_encoder(stage.out / "encoder.json", section, encoder)
    stage.write_metrics(metrics)


def _captions(split: str) -> CaptionedImages:
    manifest = Manifest(MANIFEST, "train" if split == "train" else "held_out")
    captions = manifest.captions()
    if captions is None:
        raise ValueError("text: must be null, as the images of data.source have no captions")
    return CaptionedImages(manifest.paths(), captions)


def _encode(
    stage: Stage, encoder: TextEncoder, captions: Captions, count: int, folder: Path
) -> None:
    """Write the files of tokens that are not there yet, if tokens are kept."""
    if encoder.cache is None:
        return
    numbers = torch.arange(captions.num_trained).split(encoder.cache.shard_captions)
    with tqdm(total=captions.num_trained, desc=stage.name, unit="caption", delay=3) as progress:
        for number, part in enumerate(numbers):
            path = file_path(folder, number)
            if not stage.is_made(path):
                tokens = encoder.encode(captions.texts(part), count)
                write_tokens(path, tokens, encoder.cache.dtype)
            progress.update(len(part))


if __name__ == "__main__":
    run(main)
