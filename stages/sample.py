"""Generate images with the trained generator."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor
from tqdm import tqdm

from mar import distributed
from mar.data.class_names import read_class_names
from mar.evaluation.image_grid import captioned_grid
from mar.files import atomic, seal
from mar.latents.info import LatentsInfo
from mar.model.compilation import compile_sampling
from mar.model.mar import MAR
from mar.sampling.blank import count_all_blank
from mar.sampling.config import SampleConfig
from mar.sampling.images import DECODED, decode_images, generate_latents
from mar.sampling.labels import balanced_labels, labels_as_data, resolve_labels
from mar.sampling.memory import count_memory
from mar.sampling.reach import Reach
from mar.sampling.store import SampleSet, shard_path, write_shard
from mar.tokenizers.interface import Tokenizer
from mar.tokenizers.registry import load_tokenizer
from stages import chosen_weights, pictures, prompts
from stages.background import Background, background
from stages.generation_progress import generation_bar, step_counter
from stages.image_batches import ImageBatches, choose_size
from stages.prompts import Prompts
from stages.stage import Stage, read_count, run


INFO = Path("out/encode/latents.json")
TOKENIZER = Path("out/train_tokenizer/tokenizer.safetensors")
GENERATOR = Path("out/train_generator")
CLASSES = Path("out/prepare/classes.json")
ENCODER = Path("out/encode_text/encoder.json")
TEXTS = Path("out/encode_text/texts")
SHOWN = 100  # images in the grid


@dataclass(frozen=True)
class Generation:
    """All that every shard is generated with."""

    model: MAR
    decoder: Tokenizer
    labels: Tensor
    prompts: Prompts | None
    config: SampleConfig
    reach: Reach
    batches: ImageBatches
    decoding: ImageBatches

    def write(
        self, stage: Stage, path: Path, shard: Tensor, progress: tqdm, background: Background
    ) -> None:
        """Generate the images `shard`; in the background, decode and write them as one file."""
        parts: list[Tensor] = []

        def draw(indices: Tensor) -> Tensor:
            shown = progress.n
            try:
                return generate_latents(
                    self.model,
                    self.labels[indices] if self.prompts is None else self.prompts.given(indices),
                    indices.tolist(),
                    self.config,
                    autocast=stage.autocast,
                    on_step=step_counter(progress, len(indices), self.model.num_tokens),
                )
            except BaseException:
                progress.n = shown  # a smaller batch may follow
                raise

        def finish(batch: Tensor, latents: Tensor) -> None:
            parts.append(self._decode(batch, latents))
            if sum(map(len, parts)) == len(shard):
                self._write(path, shard, torch.cat(parts))

        for batch, latents in self.batches.each(shard, draw):
            background.submit(partial(finish, batch, latents))

    def _decode(self, batch: Tensor, latents: Tensor) -> Tensor:
        images = self.decoding.make(
            torch.arange(len(batch)),
            lambda rows: decode_images(
                self.decoder,
                latents[int(rows[0]) : int(rows[-1]) + 1],
                batch[rows].tolist(),
                latent_std=self.reach.latent_std,
                unset_bound=self.config.unset_bound,
            ),
        )
        self.reach.update(latents)
        return images

    def _write(self, path: Path, shard: Tensor, images: Tensor) -> None:
        write_shard(
            path,
            images,
            labels=self.labels[shard],
            first_index=int(shard[0]),
            num_classes=self.model.num_classes,
            seed=self.config.seed,
            **({} if self.prompts is None else self.prompts.columns(shard)),
        )


def main(stage: Stage) -> None:
    """Write the shards that are not there yet, shared among the processes, then the grid."""
    torch.set_float32_matmul_precision("high")  # the denoiser's products, on GPUs: TensorFloat32
    class_names = read_class_names(CLASSES)
    generation = _load(stage, class_names)
    num_images = generation.config.num_images
    shards = torch.arange(num_images).split(generation.config.shard_images)
    folder = stage.work / _folder_name(generation.prompts)
    paths = [shard_path(folder, number) for number in range(len(shards))]
    started = time.monotonic()

    missing = distributed.from_main(lambda: _missing(stage, paths))
    num_missing = sum(len(shards[number]) for number in missing)
    mine = distributed.share(missing)
    num_mine = sum(len(shards[number]) for number in mine)
    with (
        _progress(stage, num_mine, num_images - num_missing) as progress,
        distributed.meeting(),
        background(stage.device) as behind,
    ):
        for number in mine:
            generation.write(stage, paths[number], shards[number], progress, behind)
    reaches = distributed.gather(generation.reach)
    if not distributed.is_main():
        return
    if warning := Reach.of(reaches).warning(generation.config.unset_bound):
        _say(stage, warning)
    # Of this start alone: an earlier one, that was killed, may have made some or all.
    speed = num_missing / (time.monotonic() - started) if num_missing else None
    stage.log_speeds(images_per_second=speed)
    atomic.publish_folder(folder, stage.out / "samples")
    blank = count_all_blank(
        torch.from_numpy(images.copy()).permute(0, 3, 1, 2)
        for images in SampleSet(stage.out / "samples", checked=True).arrays()
    )
    if warning := blank.warning():
        _say(stage, warning)
    stage.write_metrics({"num_images": num_images, "num_constant": blank.num_constant,
                         "num_saturated": blank.num_saturated})  # fmt: skip
    pictures.save(stage, stage.out / "grid.png", lambda: _grid(stage.out / "samples", class_names))


def _load(stage: Stage, class_names: list[str]) -> Generation:
    config = stage.params("sample", SampleConfig)
    info = LatentsInfo.read(INFO)
    digest = seal.digest(TOKENIZER)
    info.check({"tokenizer": digest})
    model = chosen_weights.load(GENERATOR, config.weights, digest, partial(_say, stage))
    model.to(stage.device)
    if read_count("MAR_COMPILE_SAMPLING", 0, least=0) and not compile_sampling(model):
        _say(stage, "MAR_COMPILE_SAMPLING: this head takes no denoising steps to compile")
    decoder = load_tokenizer(TOKENIZER).to(stage.device)
    chosen = resolve_labels(config.labels, class_names)
    if chosen is not None:
        described = ", ".join(f"{label} ({class_names[label]})" for label in chosen)
        _say(stage, f"images of the classes {described}")
    if config.labels == "as_data":
        labels = labels_as_data(config.num_images, info.class_counts, seed=config.seed)
    else:
        labels = balanced_labels(config.num_images, chosen, model.num_classes)
    texts = None
    if model.text is not None:
        texts = prompts.load(
            config,
            config.num_images,
            model,
            ENCODER,
            TEXTS,
            base=stage.root,
            device=stage.device,
        )
        for remark in texts.remarks:
            _say(stage, remark)
    size = choose_size(stage.device, partial(count_memory, model, decoder, config))
    return Generation(
        model,
        decoder,
        labels,
        texts,
        config,
        Reach(info.largest, info.latent_std),
        ImageBatches(stage.name, size),
        ImageBatches(stage.name, DECODED),
    )


def _say(stage: Stage, text: str) -> None:
    if distributed.is_main():
        sys.stderr.write(f"{stage.name}: {text}\n")


def _folder_name(prompts: Prompts | None) -> str:
    """Return the folder of shards in the work folder: another one for other prompts.

    The work folder belongs to settings, which hold the path of a file of prompts and not its lines.
    """
    return "samples" if prompts is None else f"samples-{prompts.digest()[:16]}"


def _missing(stage: Stage, paths: Sequence[Path]) -> list[int]:
    """Return the numbers of the shards that no earlier start has made."""
    return [number for number, path in enumerate(paths) if not stage.is_made(path)]


def _progress(stage: Stage, share: int, done: int) -> tqdm:
    """Return a bar for all images or, with several processes, for the main one's share."""
    if (num := distributed.num_processes()) == 1:
        return generation_bar(stage.name, done + share, done)
    return generation_bar(f"{stage.name}, first of {num} processes", share)


def _grid(folder: Path, class_names: list[str]) -> Image:
    samples = SampleSet(folder)
    shown = range(min(SHOWN, len(samples)))
    titles = samples.prompts or [class_names[label] for label in samples.labels.tolist()]
    images = samples.stack(list(shown))
    return captioned_grid(images, titles[: len(shown)], columns=10, lines=3)


if __name__ == "__main__":
    run(main)
