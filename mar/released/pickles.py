"""Files of torch.save: opened without running what is in them, and written for the original code.

Such a file is a pickle, and a pickle may name any function to be called. torch reads those that
hold nothing but tensors and plain values; of all others `mar.released.inert` reads the tensors.
"""

import pickle
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mar.files import atomic
from mar.released import inert
from mar.released.inert import Loaded


# How files of torch.save begin: a zip archive, or until torch 1.6 a pickled number.
ARCHIVE = b"PK\x03\x04"
BEFORE_ARCHIVES = bytes.fromhex("6cfc9c46f9206aa85019")  # within the first bytes
# How files begin that are found in their place.
OTHERS = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"version https://git-lfs", "a pointer of Git LFS"),
    (b"<", "a web page"),
)
# In every file of the release. Its name leads to ours, so that not even argparse's code runs.
COMMAND_LINE = (inert.Placeholder, "argparse.Namespace")


# Reading


def load(path: Path) -> Loaded:
    """Return what a file holds, and the names of what in it is neither tensor nor plain value.

    Their memory is the file itself where its format allows that (the optimizer's half of a released
    file is then never read), so do not overwrite it in place.

    Raises:
        ValueError: the file is damaged, or none of torch.save.
    """
    with path.open("rb") as file:
        beginning = file.read(64)
    mapped = beginning.startswith(ARCHIVE)
    if not mapped and BEFORE_ARCHIVES not in beginning:
        raise ValueError(
            f"{path} is {_guess(beginning)}, expected a file of torch.save or safetensors"
        )
    # torch would take a path with this ending for what it says.
    mapped = mapped and path.suffix != ".safetensors"
    try:
        try:
            return Loaded(_load_plain(path, mapped=mapped), [])
        except pickle.UnpicklingError:
            return inert.load(path, mapped=mapped)
    except Exception as error:  # a damaged pickle may end in any
        raise ValueError(f"{path} {_reason(error)}") from None


def _load_plain(path: Path, *, mapped: bool) -> object:
    allowed = torch.serialization.safe_globals([COMMAND_LINE])
    with path.open("rb") as file, warnings.catch_warnings(), allowed:
        warnings.simplefilter("ignore")  # torch's, about old pickles
        return torch.load(
            path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped
        )


def _guess(beginning: bytes) -> str:
    if not beginning:
        return "empty"
    for start, name in OTHERS:
        if beginning.lstrip().startswith(start):
            return name
    return f"something else (it begins with {beginning[:8]!r})"


def _reason(error: Exception) -> str:
    text = str(error)
    if "TorchScript" in text:
        return (
            "is a TorchScript archive, expected a file of torch.save with a dictionary of tensors"
        )
    text = text.partition("WeightsUnpickler error:")[2] or text  # before it, torch's advice
    sentence = next(iter(text.strip().splitlines()), "").partition(". ")[0]
    kind = type(error).__name__
    return f"is damaged or cut off, expected a whole file of torch.save: {kind}: {sentence}"


# Writing


def write_generator(
    path: Path,
    model: Mapping[str, Tensor],
    ema: Mapping[str, Tensor],
    description: Mapping[str, Any] | None = None,
) -> None:
    """Write a generator's file that the original code loads, and `mar.released.weights`.

    It has `model` and `model_ema`: the original loads the first into its network and takes its
    averages from the second, to evaluate (`--resume FOLDER --evaluate`, where the file must be
    `FOLDER/checkpoint-last.pth`) or to generate. Left out are `optimizer`, `epoch` and `scaler`,
    from which it resumes a training if the file has them, and `args`, which it never reads.

    Args:
        path: The file, replaced in one piece.
        model: The weights trained, under the released names (`names.to_released`).
        ema: Their moving average; if there is none, the same weights.
        description: Plain values to write beside them, which the original code never reads.
    """
    assert model.keys() == ema.keys()
    _write(path, {"model": model, "model_ema": ema}, description)


def write_tokenizer(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a tokenizer's file that the original code loads, and `mar.released.weights`."""
    _write(path, {"model": tensors})


def _write(
    path: Path,
    content: Mapping[str, Mapping[str, Tensor]],
    description: Mapping[str, Any] | None = None,
) -> None:
    # Interned: a pickle tells whether two equal names are one object, a digest should not.
    owned: dict[str, object] = {
        key: {sys.intern(name): _owned(tensor) for name, tensor in tensors.items()}
        for key, tensors in content.items()
    }
    if description is not None:
        owned["description"] = dict(description)
    # Given a path, torch would write its name into the file.
    with atomic.replacing(path) as partial, partial.open("wb") as file:
        torch.save(owned, file)


def _owned(tensor: Tensor) -> Tensor:
    """Return a tensor whose storage holds nothing else: torch.save writes whole storages."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor.clone() if tensor.untyped_storage().nbytes() != tensor.nbytes else tensor
