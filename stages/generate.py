"""Generate images of chosen classes, from `out/` or from released weights, without a pipeline run.

`python -m stages.generate --help` lists the options. It is no stage of `dvc.yaml`: it writes single
pictures for a person, and nothing depends on them.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int, UInt8
from PIL import Image
from ruamel.yaml import YAML
from torch import Tensor

from mar.evaluation.image_grid import label_grid, save_png
from mar.files import atomic
from mar.sampling.generate import SampleConfig, check_fit
from mar.sampling.images import generate_images
from mar.sampling.labels import labels_called
from stages import params, scoring
from stages.generation_progress import generation_bar, step_counter
from stages.runner import choose_device
from stages.score_table import score_table
from stages.scoring import Scorer
from stages.stage import autocast, read_count
from stages.weights import Weights, released_weights, say, trained_weights


GENERATED = Path("generated")
COLUMNS = 8  # of the grid


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, generate, and write the pictures."""
    options = parse(arguments)
    try:
        folder = _new_folder(options.out)
        if options.weights is None:
            weights = trained_weights(options.ema)
        else:
            weights = released_weights(options.weights, options.tokenizer, options.ema)
        config = sample_config(weights.sample, options)
        num_tokens = weights.mar.num_tokens
        check_fit(config, weights.mar.config, num_tokens)
        labels = class_labels(options.classes, weights.class_names)
        labels = labels.repeat_interleave(options.per_class)
        scorer = open_scorer(weights, options.reference, len(labels)) if options.score else None
        images = generate(weights, labels, config)
        write(folder, images, labels, weights.class_names)
        _report(f"{folder / 'grid.png'} and {len(images)} pictures beside it")
        if scorer is not None:
            write_scores(folder, scorer, images, labels)
    except (ValueError, OSError, torch.OutOfMemoryError) as error:
        sys.stderr.write(f"generate: {error}\n")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        sys.stderr.write("generate: interrupted\n")
        raise SystemExit(130) from None


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.generate",
        description="Generate images with the weights in out/, or with released ones. Settings "
        "that are not given are those of section sample of params.yaml (out/), or of the preset "
        "for the released weights.",
    )
    add = parser.add_argument
    add("--classes", nargs="+", metavar="CLASS", help="names, or numbers; default: the first 8")
    add("--per-class", type=_positive, default=4, help="images of each class (default: 4)")
    add("--seed", type=int, help="another seed gives other images")
    add("--guidance", type=float, help="classifier-free guidance; 1 is none")
    add("--steps", type=_positive, help="generation steps, at most the tokens of an image")
    add("--head", action="append", default=[], metavar="KEY=VALUE", help="a key of sample.head, as "
        "num_steps=50 or temperature=0.95")  # fmt: skip
    add("--weights", type=Path, metavar="FILE", help="a released generator (checkpoint-last.pth)")
    add("--tokenizer", type=Path, metavar="FILE", help="its released tokenizer (kl16.ckpt)")
    add("--raw", dest="ema", action="store_false", help="the raw weights, not their average (EMA)")
    add("--out", type=Path, help="a new or empty folder (default: generated/001, 002, ...)")
    add("--score", action="store_true", help="compare the pictures with real images, as the stage "
        "evaluate does, and write scores.json beside them")  # fmt: skip
    add("--reference", type=Path, metavar="DIR", help="where the stage reference wrote what it "
        f"measured of the real images (default: {scoring.FOLDER})")  # fmt: skip
    options = parser.parse_args(arguments)
    if options.reference is not None and not options.score:
        parser.error("--reference goes with --score")
    if (options.weights is None) != (options.tokenizer is None):
        parser.error("--weights and --tokenizer go together")
    return options


def sample_config(base: SampleConfig, options: argparse.Namespace) -> SampleConfig:
    """Return the settings of the base with those of the command line in their place.

    Raises:
        ValueError: a value is not allowed; the message names its key.
    """
    fields: dict[str, Any] = base.model_dump()
    given = {
        "seed": options.seed,
        "guidance_scale": options.guidance,
        "num_steps": options.steps,
    }
    fields |= {key: value for key, value in given.items() if value is not None}
    for text in options.head:
        key, equals, value = text.partition("=")
        if not equals or key not in fields["head"]:
            known = ", ".join(name for name in fields["head"] if name != "kind")
            hint = params.suggest(key, fields["head"])
            raise ValueError(f"--head {text}: expected KEY=VALUE, KEY one of {known}{hint}")
        fields["head"][key] = YAML(typ="safe").load(value)
    return params.parse("sample", fields, SampleConfig, Path("command line"))


def class_labels(classes: Sequence[str] | None, names: Sequence[str]) -> Int[Tensor, " B"]:
    """Return the labels of classes, each given by its name or by its number.

    Where a name is itself a number, it counts as the name.

    Raises:
        ValueError: there is no such class, or several have the name.
    """
    if classes is None:
        return torch.arange(min(len(names), COLUMNS))
    labels: list[int] = []
    for given in classes:
        found = labels_called(given, names)
        if len(found) > 1:
            raise ValueError(f"--classes {given}: several classes have this name, give one of the "
                             f"numbers {', '.join(map(str, found))}")  # fmt: skip
        if not found and given.isdecimal() and int(given) < len(names):
            found = [int(given)]
        if not found:
            hint = params.suggest(given, names)
            raise ValueError(f"--classes {given}: is neither the name of a class{hint} nor a "
                             f"number from 0 to {len(names) - 1}")  # fmt: skip
        labels += found
    return torch.tensor(labels)


def generate(
    weights: Weights, labels: Int[Tensor, " B"], config: SampleConfig
) -> UInt8[Tensor, "B 3 H W"]:
    """Generate an image for each label."""
    device = choose_device()
    torch.set_float32_matmul_precision("high")
    mar, tokenizer = weights.mar.to(device), weights.tokenizer.to(device)
    batches: list[Tensor] = []
    with generation_bar("generate", len(labels)) as progress:
        size = read_count("MAR_SAMPLE_BATCH", 256, least=1)
        for indices in torch.arange(len(labels)).split(size):
            batches.append(
                generate_images(
                    mar,
                    tokenizer,
                    labels[indices],
                    indices.tolist(),
                    config,
                    latent_std=weights.latent_std,
                    autocast=partial(autocast, device),
                    on_step=step_counter(progress, len(indices), mar.num_tokens),
                )
            )
    return torch.cat(batches)


def write(
    folder: Path,
    images: UInt8[Tensor, "B 3 H W"],
    labels: Int[Tensor, " B"],
    class_names: Sequence[str],
) -> None:
    """Write each image as a PNG file, named by its number and class, and a grid of all."""
    for index, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        name = re.sub(r"[^\w-]+", "_", str(class_names[int(label)]))[:60]
        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        save_png(folder / f"{index:04d}-{name}.png", picture)
    grid = label_grid(images, labels, class_names=class_names, columns=COLUMNS)
    save_png(folder / "grid.png", grid)


def open_scorer(weights: Weights, reference: Path | None, num_images: int) -> Scorer:
    """Return what scores pictures, found fine before any is generated.

    Raises:
        ValueError: there are no real images to compare with, or they are others.
    """
    if num_images < 2:
        raise ValueError("--score: needs at least 2 pictures, got 1 (--per-class)")
    return Scorer.open(
        scoring.FOLDER if reference is None else reference,
        weights.image_size,
        weights.class_names,
        weights.preset,
    )


def write_scores(
    folder: Path, scorer: Scorer, images: UInt8[Tensor, "B 3 S S"], labels: Int[Tensor, " B"]
) -> None:
    """Write and show the scores of pictures, and say how far they can be trusted."""
    report, warnings = scorer.score(images, labels, choose_device())
    atomic.write_json(folder / "scores.json", report)
    for warning in warnings:
        say(warning)
    _report("\n".join(["", *score_table(report), "", f"  {folder / 'scores.json'}"]))


def _report(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _new_folder(chosen: Path | None) -> Path:
    """Return the folder of the pictures, which holds nothing yet.

    Raises:
        ValueError: the chosen one holds files.
    """
    if chosen is not None:
        if chosen.exists() and (not chosen.is_dir() or any(chosen.iterdir())):
            raise ValueError(f"--out: {chosen} exists and is not an empty folder")
        return chosen
    number = 1
    while (folder := GENERATED / f"{number:03d}").exists():
        number += 1
    return folder


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text!r}")
    return int(text)


if __name__ == "__main__":
    main()
