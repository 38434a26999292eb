"""Read and write the files of the release (LTH14/mar), without running what is in them.

They are pickles of torch.save, and a pickle may name any function to be called. A generator's is
{model, model_ema, optimizer, epoch, scaler, args: argparse.Namespace}, a tokenizer's is {model};
names and shapes of their tensors are the concern of `mar.released.names` and `mar.released.shapes`.
"""

import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from mar.config import Config, PathText, Sha256
from mar.files import atomic


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
SHOWN = 5  # names in a message


class Settings:
    """Stands in for the `argparse.Namespace` of a file, and forgets what it held."""

    def __setstate__(self, state: object) -> None:
        """Accept the state."""


# What may be made from a pickle besides torch's own list for `weights_only`, which is tensors,
# numbers, text, and dictionaries and lists of them.
ALLOWED = [
    # The original's command line. Its name leads to ours, so that not even argparse's code runs.
    (Settings, "argparse.Namespace"),
]


class ReleasedFile(Config):
    """What a section of `params.yaml` with `source: released` says of its file."""

    path: PathText = Field(description="the file, absolute or from the repository")
    sha256: Sha256 | None = Field(description="its SHA-256; null checks nothing")

    def place(self, base: Path) -> Path:
        """Return the file's path, which begins at `base` if it is relative."""
        return base / Path(self.path).expanduser()


# Reading


def read_generator(
    path: Path, sha256: str | None, *, which: Literal["model", "model_ema"]
) -> dict[str, Tensor]:
    """Return one of the two sets of weights in a generator's file, under the released names.

    The tensors keep their dtype. Their memory is the file itself where its format allows that (the
    optimizer's half of a released file is then never read), so do not overwrite it in place.

    Args:
        path: The file.
        sha256: Of the file; null checks nothing.
        which: The weights trained, or their moving average, which generates better.

    Raises:
        ValueError: the file is missing, another one, damaged, or no generator's.
    """
    return _read(path, sha256, which, "generator")


def read_tokenizer(path: Path, sha256: str | None) -> dict[str, Tensor]:
    """Return the weights in a tokenizer's file, as `read_generator` does.

    Raises:
        ValueError: the file is missing, another one, damaged, or no tokenizer's.
    """
    return _read(path, sha256, "model", "tokenizer")


def _read(
    path: Path, sha256: str | None, key: str, expected: Literal["generator", "tokenizer"]
) -> dict[str, Tensor]:
    _check(path, sha256)
    content = _load(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {_type(content)}, expected a dictionary with {key!r}")
    content = cast("dict[object, object]", content)  # of what, isinstance cannot tell
    if key not in content:
        raise ValueError(
            f"{path} has the entries {_some(content)}, expected {key!r} of a {expected}"
        )
    tensors = _tensors(path, key, content[key])
    found = _kind(tensors)
    if found not in (expected, None):  # what is neither, load_released describes in detail
        raise ValueError(f"{path} holds a {found}, expected a {expected}")
    return tensors


def _check(path: Path, sha256: str | None) -> None:
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected a file of torch.save")
    if not path.is_file():
        raise ValueError(f"{path} is missing, expected a file of torch.save")
    if found := atomic.other_digest(path, sha256):
        raise ValueError(f"{path} has the SHA-256 {found}, expected {sha256}")


def _load(path: Path) -> object:
    """Unpickle a file, allowing for nothing but tensors, plain values and what is in `ALLOWED`."""
    with path.open("rb") as file:
        beginning = file.read(64)
        file.seek(0)
        archive = beginning.startswith(ARCHIVE)
        if not archive and BEFORE_ARCHIVES not in beginning:
            raise ValueError(f"{path} is {_guess(beginning)}, expected a file of torch.save")
        # torch maps archives only; and it would take a path with this ending for what it says.
        mapped = archive and path.suffix != ".safetensors"
        try:
            with torch.serialization.safe_globals(list(ALLOWED)):
                return torch.load(
                    path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped
                )
        except Exception as error:  # a damaged pickle may end in any
            raise ValueError(f"{path} {_reason(error)}") from None


def _tensors(path: Path, key: str, entry: object) -> dict[str, Tensor]:
    if not isinstance(entry, dict):
        raise ValueError(f"{path}: {key} is {_type(entry)}, expected a dictionary of tensors")
    tensors: dict[str, Tensor] = {}
    for name, value in cast("dict[object, object]", entry).items():
        if not isinstance(value, Tensor) or not isinstance(name, str):
            raise ValueError(
                f"{path}: {key}[{name!r}] is {_type(value)}, expected a name and a tensor"
            )
        tensors[name] = value.detach()  # the original saves its averages as parameters
    return tensors


def _kind(names: Iterable[str]) -> Literal["generator", "tokenizer"] | None:
    if any(name.startswith("diffloss.") for name in names):
        return "generator"
    if any(name.startswith("post_quant_conv.") for name in names):
        return "tokenizer"
    return None


# Messages


def _guess(beginning: bytes) -> str:
    if not beginning:
        return "empty"
    if beginning[8:9] == b"{":  # after the length of that dictionary
        return "a safetensors file"
    for start, name in OTHERS:
        if beginning.lstrip().startswith(start):
            return name
    return f"something else (it begins with {beginning[:8]!r})"


def _reason(error: Exception) -> str:
    text = str(error)
    if foreign := re.search(r"GLOBAL (\S+)", text):
        return f"would make or call {foreign[1]}, expected nothing but tensors and plain values"
    text = text.partition("WeightsUnpickler error:")[2] or text  # before it, torch's advice
    sentence = next(iter(text.strip().splitlines()), "").partition(". ")[0]
    kind = type(error).__name__
    return f"is damaged or cut off, expected a whole file of torch.save: {kind}: {sentence}"


def _type(value: object) -> str:
    return f"a value of type {type(value).__name__}"


def _some(names: Iterable[object]) -> str:
    shown = [repr(name) for name in names]
    if not shown:
        return "(none)"
    more = f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
    return ", ".join(shown[:SHOWN]) + more


# Writing


def write_generator(path: Path, model: Mapping[str, Tensor], ema: Mapping[str, Tensor]) -> None:
    """Write a generator's file that the original code loads, and `read_generator`.

    It has `model` and `model_ema`: the original loads the first into its network and takes its
    averages from the second, to evaluate (`--resume FOLDER --evaluate`, where the file must be
    `FOLDER/checkpoint-last.pth`) or to generate. Left out are `optimizer`, `epoch` and `scaler`,
    from which it resumes a training if the file has them, and `args`, which it never reads.

    Args:
        path: The file, replaced in one piece.
        model: The weights trained, under the released names (`released.to_released`).
        ema: Their moving average; if there is none, the same weights.
    """
    assert model.keys() == ema.keys()
    assert _kind(model) == "generator"
    _write(path, {"model": model, "model_ema": ema})


def write_tokenizer(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a tokenizer's file that the original code loads, and `read_tokenizer`."""
    assert _kind(tensors) == "tokenizer"
    _write(path, {"model": tensors})


def _write(path: Path, content: Mapping[str, Mapping[str, Tensor]]) -> None:
    # Interned: a pickle tells whether two equal names are one object, a digest should not.
    owned = {
        key: {sys.intern(name): _owned(tensor) for name, tensor in tensors.items()}
        for key, tensors in content.items()
    }
    # Given a path, torch would write its name into the file.
    with atomic.replacing(path) as partial, partial.open("wb") as file:
        torch.save(owned, file)


def _owned(tensor: Tensor) -> Tensor:
    """Return a tensor whose storage holds nothing else: torch.save writes whole storages."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor.clone() if tensor.untyped_storage().nbytes() != tensor.nbytes else tensor
