"""Generate images of chosen classes, from `out/` or from released weights, without a pipeline run.

`python -m stages.generate --help` lists the options. It is no stage of `dvc.yaml`: it writes single
pictures for a person, and nothing depends on them.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int, UInt8
from PIL import Image
from ruamel.yaml import YAML
from torch import Tensor

from mar.data.class_names import read_class_names
from mar.evaluation.image_grid import label_grid, save_png
from mar.files import seal
from mar.latents.info import LatentsInfo
from mar.latents.posterior import LatentShape
from mar.model.mar import MAR, load_mar
from mar.released.contents import read_generator
from mar.released.generator import ReleasedGenerator
from mar.released.names import from_released, to_released
from mar.released.reader import read_tokenizer
from mar.released.shapes import check_tensors, describe_generator
from mar.released.tokenizer import ReleasedAutoencoder, to_ours
from mar.sampling.generate import SampleConfig, check_fit
from mar.sampling.images import generate_images
from mar.sampling.labels import labels_called
from mar.sources.no_images import NoData
from mar.sources.source import Surroundings
from mar.tokenizers.interface import Tokenizer
from mar.tokenizers.kl import AutoencoderKL
from mar.tokenizers.registry import load_tokenizer
from stages import params, presets
from stages.generation_progress import generation_bar, step_counter
from stages.runner import choose_device
from stages.stage import OUT, autocast, read_count


GENERATED = Path("generated")
COLUMNS = 8  # of the grid


@dataclass(frozen=True)
class Weights:
    """All that images are generated with.

    Attributes:
        mar: The generator, in evaluation mode.
        tokenizer: What decodes its latents.
        latent_std: What latents were divided by in training.
        class_names: The name of each label.
        sample: How to sample, where the command line says nothing else.
    """

    mar: MAR
    tokenizer: Tokenizer
    latent_std: float
    class_names: list[str]
    sample: SampleConfig


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
        images = generate(weights, labels, config)
        write(folder, images, labels, weights.class_names)
    except (ValueError, OSError, torch.OutOfMemoryError) as error:
        sys.stderr.write(f"generate: {error}\n")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        sys.stderr.write("generate: interrupted; nothing was written\n")
        raise SystemExit(130) from None
    sys.stdout.write(f"{folder / 'grid.png'} and {len(images)} pictures beside it\n")


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
    options = parser.parse_args(arguments)
    if (options.weights is None) != (options.tokenizer is None):
        parser.error("--weights and --tokenizer go together")
    return options


def trained_weights(ema: bool) -> Weights:
    """Return the weights that the pipeline made.

    Raises:
        ValueError: a stage that makes them has not run, or its files do not belong together.
    """
    _say("reading the weights in out/")
    tokenizer = OUT / "train_tokenizer" / "tokenizer.safetensors"
    classes = OUT / "prepare" / "classes.json"
    info_path = OUT / "encode" / "latents.json"
    for path in (tokenizer, classes, info_path):
        if not path.is_file():
            raise ValueError(f"{path} is missing; `dvc repro train_generator` makes it, "
                             "or give --weights and --tokenizer")  # fmt: skip
    info = LatentsInfo.read(info_path)
    digest = seal.digest(tokenizer)
    info.check({"tokenizer": digest})
    name = "ema" if ema else "generator"
    return Weights(
        load_mar(OUT / "train_generator" / f"{name}.safetensors", digest),
        load_tokenizer(tokenizer),
        info.latent_std,
        read_class_names(classes),
        params.load("sample", SampleConfig),
    )


def released_weights(generator: Path, tokenizer: Path, ema: bool) -> Weights:
    """Return weights of files in the layout of LTH14/mar, for ImageNet at 256 px.

    Raises:
        ValueError: a file is missing, damaged, or not of a published size.
    """
    _say(f"reading {generator} and {tokenizer}")
    found = read_generator(generator, None, which="model_ema" if ema else "model")
    shape = describe_generator(found.tensors)
    if shape.size is None or shape.num_tokens != 256:
        raise ValueError(
            f"{generator} holds {shape}, expected a published size (base, large or huge) with 256 "
            "tokens; for others, describe them in params.yaml and run the pipeline"
        )
    text = presets.resolve(f"imagenet256-mar-{shape.size[0]}-released")
    sections = YAML(typ="safe").load(text)
    parsed = {
        name: params.parse(name, sections[name], kind, Path("the preset"))
        for name, kind in {
            "data": NoData,
            "generator": ReleasedGenerator,
            "sample": SampleConfig,
        }.items()
    }
    codec = _released_tokenizer(sections["tokenizer"], tokenizer)
    side = parsed["data"].image_size // codec.stride
    mar = MAR(
        parsed["generator"], LatentShape(codec.latent_channels, side, side), shape.num_classes
    )
    try:
        check_tensors(to_released(mar.state_dict()), found.tensors)
    except ValueError as error:
        raise ValueError(f"{generator}: {error}") from None
    mar.load_state_dict(from_released(found.tensors))
    _tell(found.remarks)
    return Weights(
        mar.requires_grad_(False).eval(),
        codec.requires_grad_(False).eval(),
        1 / sections["latents"]["scale"],
        parsed["data"].collect(Surroundings(Path(), workers=0, max_pixels=1)).class_names,
        parsed["sample"],
    )


def _released_tokenizer(fields: dict[str, Any], path: Path) -> AutoencoderKL:
    """Return the tokenizer of a file, described by the section of a preset."""
    section = ReleasedAutoencoder.model_validate({**fields, "path": str(path.absolute())})
    codec = AutoencoderKL(section)
    found = read_tokenizer(section, codec, base=Path())
    codec.load_state_dict(to_ours(section, found.tensors, codec))
    _tell(found.remarks)
    return codec


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


def _tell(remarks: Sequence[str]) -> None:
    for remark in remarks:
        _say(remark)


def _say(text: str) -> None:
    sys.stderr.write(f"generate: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
