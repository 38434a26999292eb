"""The options of `stages.generate`: which weights, of which classes or prompts, and how.

Messages name the option that was typed, not the key of `params.yaml` that it stands for.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mar.sampling.config import SampleConfig
from mar.text.prompts import Prompt, read_prompts, tidy
from stages import conditions, params, scoring
from stages.conditions import Given
from stages.sampler import Sampler
from stages.weights import Weights


COLUMNS = 8  # of the grid, and classes where none are given
OPTIONS = {"seed": "--seed", "guidance_scale": "--guidance", "num_steps": "--steps"}  # by their key


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
    add("--prompt", action="append", default=[], metavar="TEXT", help="instead of classes, where "
        "the generator takes texts; may be given several times")  # fmt: skip
    add("--prompts", type=Path, metavar="FILE", help="a file with a prompt on each line")
    add("--per-class", "--per-prompt", dest="per_class", type=_positive, default=4, metavar="N",
        help="images of each class or prompt (default: 4)")  # fmt: skip
    add("--seed", type=int, help="another seed gives other images")
    add("--guidance", type=float, help="classifier-free guidance; 1 is none")
    add("--steps", type=_positive, help="generation steps, at most the tokens of an image")
    add("--head", action="append", default=[], metavar="KEY=VALUE", help="a key of sample.head, as "
        "num_steps=50 or temperature=0.95")  # fmt: skip
    add_weights(parser)
    add("--out", type=Path, help="a new or empty folder (default: generated/001, 002, ...)")
    add("--score", action="store_true", help="compare the pictures with real images, as the stage "
        "evaluate does, and write scores.json beside them")  # fmt: skip
    add("--reference", type=Path, metavar="DIR", help="where the stage reference wrote what it "
        f"measured of the real images (default: {scoring.FOLDER})")  # fmt: skip
    options = parser.parse_args(arguments)
    if options.classes is not None and (options.prompt or options.prompts is not None):
        parser.error("--classes goes with neither --prompt nor --prompts")
    if options.reference is not None and not options.score:
        parser.error("--reference goes with --score")
    check_weights(parser, options)
    return options


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which weights to draw with."""
    add = parser.add_argument
    add("--weights", type=Path, metavar="FILE", help="a released generator (checkpoint-last.pth)")
    add("--tokenizer", type=Path, metavar="FILE", help="its released tokenizer (kl16.ckpt)")
    add("--raw", dest="ema", action="store_false", default=None, help="the raw weights, not "
        "those of sample.weights (or, of a released file, not their average)")  # fmt: skip


def check_weights(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the program where only one of two files is given."""
    if (options.weights is None) != (options.tokenizer is None):
        parser.error("--weights and --tokenizer go together")


def describe_weights(options: argparse.Namespace) -> str:
    """Return which weights the command line says."""
    if options.weights is None:
        return "the weights in out/"
    return f"{options.weights} and {options.tokenizer}"


def changes(base: SampleConfig, options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of the command line, as `Sampler.settings` takes them.

    Raises:
        ValueError: `--head` is not KEY=VALUE.
    """
    given = {
        "seed": options.seed,
        "guidance_scale": options.guidance,
        "num_steps": options.steps,
    }
    head: dict[str, Any] = {}
    known = [name for name in base.model_dump()["head"] if name != "kind"]
    for text in options.head:
        key, equals, value = text.partition("=")
        if not equals or key not in known:
            raise ValueError(f"--head {text}: expected KEY=VALUE, KEY one of {', '.join(known)}"
                             f"{params.suggest(key, known)}")  # fmt: skip
        head[key] = params.parse_yaml(value)
    return {key: value for key, value in given.items() if value is not None} | {"head": head}


def settings(sampler: Sampler, options: argparse.Namespace) -> SampleConfig:
    """Return section `sample` with the settings of the command line.

    Raises:
        ValueError: one is not allowed or not for this model; the message has the option.
    """
    given = changes(sampler.weights.sample, options)
    try:
        return sampler.settings(source="command line", **given)
    except ValueError as error:
        message = str(error).replace("command line: ", "")
    typed = {f"sample.{key}": option for key, option in OPTIONS.items() if key in given}
    typed |= {f"sample.head.{key}": f"--head {key}" for key in given["head"]}
    for key, option in typed.items():
        message = re.sub(rf"\b{re.escape(key)}\b", option, message)
    raise ValueError(message)


def read_given(weights: Weights, options: argparse.Namespace) -> Given:
    """Return the classes or the prompts of the command line.

    Raises:
        ValueError: the generator does not take them, there is no such class, several have the name,
            nothing is left of a prompt, or a file of prompts cannot be read.
    """
    prompts = [Prompt(tidy(text), place="--prompt") for text in options.prompt]
    if options.prompts is not None:
        try:
            found = read_prompts(options.prompts.expanduser())
        except ValueError as error:
            raise ValueError(f"--prompts: {error}") from None
        prompts += [prompt._replace(place=f"--prompts: {prompt.place}") for prompt in found]
    if prompts and weights.texts is None:
        option = "--prompt" if options.prompt else "--prompts"
        raise ValueError(f"{option}: this generator takes classes and no prompts")
    if prompts:
        return conditions.of_prompts(weights, prompts)
    if weights.texts is not None and options.classes is None:
        raise ValueError("this generator takes prompts: give --prompt TEXT, or --prompts FILE")
    try:
        classes = options.classes
        if classes is None:
            classes = range(min(len(weights.class_names), COLUMNS))
        return conditions.of_classes(weights, classes)
    except ValueError as error:
        raise ValueError(f"--classes: {error}") from None


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text!r}")
    return int(text)
