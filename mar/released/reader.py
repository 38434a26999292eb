"""Open the files that sections with released weights name, and check that they fit.

A stage loads this module by name (`stages.released`): what it reads is what the file holds, so it
can refuse a file, and never changes what is made of it.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mar.model.mar import MAR
from mar.released import contents, diffusers_folder
from mar.released.contents import Found
from mar.released.generator import ReleasedGenerator
from mar.released.names import to_released
from mar.released.shapes import check_generator, check_layout, check_tensors
from mar.released.tokenizer import LDMFile, ReleasedAutoencoder
from mar.tokenizers.interface import TokenizerSection


class GeneratorFile(NamedTuple):
    """Both sets of weights of a generator's file, under the released names.

    Attributes:
        chosen: Those that `generator.weights` names.
        model: Those trained.
        remarks: What a user should know of the file.
    """

    chosen: Mapping[str, Tensor]
    model: Mapping[str, Tensor]
    remarks: list[str]


def read_generator(section: ReleasedGenerator, model: MAR, *, base: Path) -> GeneratorFile:
    """Return the weights of a generator's file, which fit the model.

    Args:
        section: Section `generator`.
        model: The generator that it describes.
        base: Where the path of the file begins, if it is relative.

    Raises:
        ValueError: the file is missing, another one, damaged, or its tensors do not fit.
    """
    check_layout(section)
    if model.text is not None:  # but for its texts, it must be the file's
        sizes = (model.latent, model.num_classes, model.codebook_size)
        with torch.device("meta"):
            model = MAR(model.config, *sizes)
    path = section.place(base)
    chosen = contents.read_generator(path, section.sha256, which=section.weights)
    trained = chosen
    if section.weights != "model":
        trained = contents.read_generator(path, None, which="model")
    expected = _taken(section, to_released(model.state_dict()))
    for name, found in {section.weights: chosen, "model": trained}.items():
        check_generator(path, found.tensors, model, section)
        try:
            check_tensors(expected, _taken(section, found.tensors))
        except ValueError as error:
            raise ValueError(f"{path}: {name}: {error}") from None
    remarks = list(dict.fromkeys([*chosen.remarks, *trained.remarks]))
    return GeneratorFile(chosen.tensors, trained.tensors, remarks)


def read_tokenizer(section: TokenizerSection, model: nn.Module, *, base: Path) -> Found:
    """Return the weights of a tokenizer's file, which fit the model.

    Args:
        section: Section `tokenizer`, one of those with a file.
        model: The tokenizer that it describes.
        base: Where the path of the file begins, if it is relative.

    Raises:
        ValueError: the file is missing, another one, damaged, or its tensors do not fit.
    """
    return READERS[section.kind](section, model, base)


def _read_autoencoder(
    section: ReleasedAutoencoder | LDMFile, model: nn.Module, base: Path
) -> Found:
    path = section.place(base)
    found = contents.read_tokenizer(path, section.sha256)
    suited = {
        "diffusers": contents.has_diffusers_names(found.tensors),
        "ldm": any(re.match(r"decoder\.up\.\d+\.attn\.", name) for name in found.tensors),
    }
    for kind, is_suited in suited.items():
        if is_suited and section.kind != kind:
            raise ValueError(
                f"tokenizer.kind: must be {kind!r} for the layers in {path}, got {section.kind!r}"
            )
    try:
        check_tensors(model.state_dict(), found.tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return found


# By the kind of tokenizer; each takes its own section.
READERS: dict[str, Callable[[Any, nn.Module, Path], Found]] = {
    "kl": _read_autoencoder,
    "ldm": _read_autoencoder,
    "diffusers": diffusers_folder.read,
}


def _taken(section: ReleasedGenerator, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if not section.is_new(name)}
