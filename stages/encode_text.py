"""Encode the captions of the images for the generator."""

import sys
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mar import distributed
from mar.data.manifest import Manifest
from mar.files import atomic
from mar.text.cache import CaptionedImages, Captions, write_captions
from mar.text.encoder import TextEncoder
from mar.text.registry import TextConfig, save_encoder
from mar.text.survey import Survey
from mar.text.token_files import file_path, is_of_encoder, write_tokens
from stages.disk import room_for_embeddings
from stages.stage import Stage, run


MANIFEST = Path("out/prepare/manifest.parquet")


def main(stage: Stage) -> None:
    """Write the encoder and the tokens of all captions; without section `text`, nothing in them.

    Of several processes, each writes every n-th file of tokens, and the first one does the rest.
    """
    section = stage.params("text", TextConfig | None)
    count = stage.params("generator.condition_tokens", int)
    folder = stage.work / "texts"
    encoder: TextEncoder | None = None
    splits: Mapping[str, CaptionedImages] = {}
    if section is not None:
        splits = {split: _captions(split) for split in ("train", "held_out")}
        texts = splits["train"].captions
        encoder = distributed.main_first(lambda: section.learn(chain(*texts), base=stage.root))
    if encoder is not None:
        encoder.check_count(count)
    distributed.from_main(lambda: write_captions(folder, splits))
    metrics: dict[str, Any] = {"num_captions": 0}
    if encoder is not None:
        captions = Captions(folder)
        metrics = distributed.from_main(lambda: _survey(stage, encoder, captions, count, folder))
        _encode(stage, encoder.to(stage.device), captions, count, folder)
    if distributed.is_main():
        atomic.publish_folder(folder, stage.out / "texts")
        save_encoder(stage.out / "encoder.json", section, encoder)
        stage.write_metrics(metrics)


def _captions(split: str) -> CaptionedImages:
    manifest = Manifest(MANIFEST, "train" if split == "train" else "held_out")
    captions = manifest.captions()
    if captions is None:
        raise ValueError("text: must be null, as the images of data.source have no captions")
    return CaptionedImages(manifest.paths(), captions)


def _survey(
    stage: Stage, encoder: TextEncoder, captions: Captions, count: int, folder: Path
) -> dict[str, int | float]:
    """Say what the encoder makes of the captions and what that takes of the disk.

    Raises:
        ValueError: the disk has no room.
    """
    survey = Survey(captions, encoder, count)
    stage.warn(survey.remarks())
    if encoder.token_kind == "embeddings" and encoder.cache is not None:
        said = room_for_embeddings(survey.kept_tokens, encoder.size, encoder.cache.dtype, folder)
        sys.stderr.write(f"{stage.name}: {said}\n")
    return survey.metrics()


def _encode(
    stage: Stage, encoder: TextEncoder, captions: Captions, count: int, folder: Path
) -> None:
    """Write this process's share of the files of tokens that this encoder has not made yet."""
    if (cache := encoder.cache) is None:
        return
    parts = torch.split(torch.arange(captions.num_trained), cache.shard_captions)
    files = [(file_path(folder, number), part) for number, part in enumerate(parts)]
    mine: list[tuple[Path, Tensor]] = list(distributed.share(files))
    with (
        tqdm(
            total=sum(len(part) for _, part in mine),
            desc=stage.name,
            unit="caption",
            delay=3,
            disable=not distributed.is_main(),
        ) as progress,
        distributed.meeting(),
    ):
        for path, part in mine:
            if not (stage.is_made(path) and is_of_encoder(path, encoder.identity)):
                tokens = encoder.encode(captions.texts(part), count)
                write_tokens(path, tokens, cache.dtype, encoder.identity)
            progress.update(len(part))


if __name__ == "__main__":
    run(main)
