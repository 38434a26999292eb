"""Generate images of classes or prompts, from `out/` or from released weights, without a pipeline.

`python -m stages.generate --help` lists the options. It is no stage of `dvc.yaml`: it writes single
pictures for a person, and nothing depends on them.
"""

import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from mar.evaluation.image_grid import captioned_grid, save_png
from mar.files import atomic
from mar.sampling.blank import count_blank
from mar.sampling.export import require_new, write_captions
from stages import prompt_scores, scene_scores, scoring
from stages.conditions import Given
from stages.generate_options import COLUMNS, describe_weights, parse, read_given, settings
from stages.generation_progress import generation_bar
from stages.runner import choose_device
from stages.sampler import Progress, load
from stages.score_table import score_table, text_table
from stages.scoring import Scorer
from stages.weights import Weights


GENERATED = Path("generated")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, generate, and write the pictures."""
    options = parse(arguments)
    try:
        folder = _new_folder(options.out)
        say(f"reading {describe_weights(options)}")
        sampler = load(generator=options.weights, tokenizer=options.tokenizer, ema=options.ema)
        weights = sampler.weights
        for remark in weights.remarks:
            say(remark)
        config = settings(sampler, options)
        given = read_given(weights, options).repeat(options.per_class)
        for remark in given.remarks:
            say(remark)
        count = len(given.names)
        scorer = open_scorer(weights, options.reference, given) if options.score else None
        with generation_bar("generate", count) as progress:
            images = sampler.generate(given.tokens, config, on_step=partial(_advance, progress))
        if warning := count_blank(images).warning():
            say(warning)
        write(folder, images, given.names, are_prompts=weights.texts is not None)
        _report(f"{folder / 'grid.png'} and {len(images)} pictures beside it")
        if scorer is not None:
            write_scores(folder, scorer, images, given.labels)
    except (ValueError, OSError, torch.OutOfMemoryError) as error:
        sys.stderr.write(f"generate: {error}\n")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        sys.stderr.write("generate: interrupted\n")
        raise SystemExit(130) from None


def write(
    folder: Path, images: UInt8[Tensor, "B 3 H W"], names: Sequence[str], *, are_prompts: bool
) -> None:
    """Write each image as a PNG file, named by its number and its class or prompt, and a grid.

    File names and grid cut long prompts, so `metadata.jsonl` has them beside the names of files.
    """
    files: list[str] = []
    for index, (image, name) in enumerate(zip(images, names, strict=True)):
        readable = re.sub(r"[^\w-]+", "_", name)[:60]
        files.append(f"{index:04d}-{readable}.png")
        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        save_png(folder / files[-1], picture)
    if are_prompts:
        write_captions(folder, files, names)
    save_png(folder / "grid.png", captioned_grid(images, names, columns=COLUMNS))


def open_scorer(weights: Weights, reference: Path | None, given: Given) -> Scorer:
    """Return what scores pictures, found fine before any is generated.

    Raises:
        ValueError: there are no real images to compare with, or they are others; or a model that
            scores pictures by their prompts is not what it must be.
    """
    if len(given.names) < 2:
        raise ValueError("--score: needs at least 2 pictures, got 1 (--per-class)")
    scorer = Scorer.open(
        scoring.FOLDER if reference is None else reference,
        weights.image_size,
        weights.class_names,
        weights.preset,
    )
    return scorer if given.prompts is None else scorer.with_prompts(given, choose_device())


def write_scores(
    folder: Path, scorer: Scorer, images: UInt8[Tensor, "B 3 S S"], labels: Int[Tensor, " B"]
) -> None:
    """Write and show the scores of pictures, and say how far they can be trusted."""
    report, warnings = scorer.score(images, labels, choose_device())
    atomic.write_json(folder / "scores.json", report)
    for warning in warnings:
        say(warning)
    tables = [*prompt_scores.tables(report)]
    tables += [scene_scores.table(report["scenes"])] if "scenes" in report else []
    shown = [line for table in tables for line in ("", *text_table(table))]
    _report("\n".join(["", *score_table(report), *shown, "", f"  {folder / 'scores.json'}"]))


def say(text: str) -> None:
    """Tell the person at the terminal; what is on stdout is the result."""
    sys.stderr.write(f"generate: {text}\n")
    sys.stderr.flush()


def _advance(progress: tqdm, step: Progress) -> None:
    progress.update(step.images - progress.n)


def _report(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _new_folder(chosen: Path | None) -> Path:
    """Return the folder of the pictures, which holds nothing yet.

    Raises:
        ValueError: the chosen one holds files.
    """
    if chosen is not None:
        try:
            require_new(chosen)
        except ValueError as error:
            raise ValueError(f"--out: {error}") from None
        return chosen
    number = 1
    while (folder := GENERATED / f"{number:03d}").exists():
        number += 1
    return folder


if __name__ == "__main__":
    main()
