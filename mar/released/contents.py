"""Find the weights in a file that others made, whatever surrounds them.

A generator's file of the release is {model, model_ema, optimizer, epoch, scaler, args}, a
tokenizer's is {model}, one of Lightning (LDM) is {state_dict, callbacks, ...}, and many files are
the tensors alone. Their names may begin with those of wrappers, and other tensors of a training may
stand beside them. What was left out is told in remarks.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple, cast

from safetensors import SafetensorError
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from mar.files import atomic, downloads
from mar.released import inert, pickles


Model = Literal["generator", "tokenizer"]

# A tensor that each model has; what precedes its name precedes all names.
ANCHORS: dict[Model, str] = {
    "generator": "diffloss.net.input_proj.weight",
    "tokenizer": "decoder.conv_in.weight",
}
COMPILED = "_orig_mod."  # what torch.compile puts into names, before those of the wrapped module
# How the names of other tensors begin that LDM keeps in the file of an autoencoder.
BESIDE: dict[Model, tuple[str, ...]] = {
    "generator": (),
    "tokenizer": ("loss.", "discriminator.", "model_ema."),
}
SHOWN = 5  # names in a message


class Found(NamedTuple):
    """Weights under the released names, with their dtype, and what a user should know of them."""

    tensors: dict[str, Tensor]
    remarks: list[str]


def read_generator(
    path: Path, sha256: str | None, *, which: Literal["model", "model_ema"]
) -> Found:
    """Return one of the two sets of weights in a generator's file.

    Their memory is the file itself where its format allows that, so do not overwrite it in place.

    Args:
        path: The file.
        sha256: Of the file; null checks nothing.
        which: The weights trained, or their moving average, which generates better.

    Raises:
        ValueError: the file is missing, another one, damaged, or no generator's.
    """
    return _read(path, sha256, which, "generator")


def read_tokenizer(path: Path, sha256: str | None) -> Found:
    """Return the weights in a tokenizer's file, under LDM's names or those of `diffusers`.

    Raises:
        ValueError: the file is missing, another one, damaged, or no tokenizer's.
    """
    return _read(path, sha256, "model", "tokenizer")


def read_description(path: Path) -> object | None:
    """Return the entry `description` that exported generators with texts have, else None.

    Raises:
        ValueError: the file is missing or damaged.
    """
    check_file(path, None)
    content, _ = _open(path)
    return (
        cast("dict[object, object]", content).get("description")
        if isinstance(content, dict)
        else None
    )


def check_file(path: Path, sha256: str | None) -> None:
    """Refuse a file that is not there, cannot be read, or is another one.

    Raises:
        ValueError: the message names the file, what was found and what was expected.
    """
    if problem := downloads.reading_problem(path):
        raise ValueError(f"{path} {problem}, expected a file of torch.save or safetensors")
    if found := atomic.other_digest(path, sha256):
        raise ValueError(f"{path} has the SHA-256 {found}, expected {sha256}")


def has_diffusers_names(names: Iterable[str]) -> bool:
    """Say whether an autoencoder's tensors are named as `diffusers` does."""
    return any(".down_blocks." in name or ".up_blocks." in name for name in names)


def _read(path: Path, sha256: str | None, key: str, expected: Model) -> Found:
    check_file(path, sha256)
    content, remarks = _open(path)
    entry, label = _choose(path, content, key, expected)
    if expected == "generator" and label != key:
        remarks.append(f"{path} holds one set of weights, which is taken for {key!r}")
    found = _unwrap(path, _tensors(path, label, entry), expected)
    kind = _kind(found.tensors)
    if kind not in (expected, None):  # what is neither, the check of its tensors describes
        raise ValueError(f"{path} holds a {kind}, expected a {expected}")
    return Found(found.tensors, [*remarks, *found.remarks])


def _open(path: Path) -> tuple[object, list[str]]:
    with path.open("rb") as file:
        is_safetensors = file.read(9)[8:] == b"{"  # after the length of that dictionary
    if is_safetensors:
        try:
            return load_file(path), []
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is not a readable safetensors file: {error}") from None
    loaded = pickles.load(path)
    if not loaded.foreign:
        return loaded.content, []
    return loaded.content, [
        f"{path}: only tensors and plain values are read, and nothing is run of "
        f"{_some(loaded.foreign)}"
    ]


def _choose(path: Path, content: object, key: str, expected: Model) -> tuple[object, str]:
    """Return the entry of a file that holds the weights, and what it is called."""
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {_type(content)}, expected a dictionary with {key!r}")
    content = cast("dict[object, object]", content)  # of what, isinstance cannot tell
    for name in (key, "state_dict"):
        if name in content:
            return content[name], name
    names = [name for name in content if isinstance(name, str)]
    if any(f".{name}".endswith(f".{anchor}") for name in names for anchor in ANCHORS.values()):
        return content, "the file"
    raise ValueError(
        f"{path} has the entries {_some(map(repr, content))}, expected {key!r} of a {expected}, "
        "or its tensors alone"
    )


def _tensors(path: Path, key: str, entry: object) -> dict[str, Tensor]:
    if not isinstance(entry, dict):
        raise ValueError(f"{path}: {key} is {_type(entry)}, expected a dictionary of tensors")
    tensors: dict[str, Tensor] = {}
    given = cast("dict[object, object]", entry)
    for name, value in dict[object, object].items(given):  # not a method that the file names
        if not isinstance(value, Tensor) or not isinstance(name, str):
            raise ValueError(
                f"{path}: {key}[{name!r}] is {_type(value)}, expected a name and a tensor"
            )
        tensors[name] = value.detach()  # the original saves its averages as parameters
    return tensors


def _unwrap(path: Path, tensors: Mapping[str, Tensor], model: Model) -> Found:
    """Take the names of wrappers off those of tensors, and leave out what is not the model's.

    Raises:
        ValueError: several sets of weights are there, or two tensors of one name.
    """
    names = {name: name.replace(COMPILED, "") for name in tensors}
    remarks: list[str] = []
    if compiled := [name for name in tensors if COMPILED in name]:
        remarks.append(f"{path}: {COMPILED!r} is left out of {len(compiled)} names")
    prefix = _prefix(path, names.values(), ANCHORS[model])
    inside = {
        name: new.removeprefix(prefix) for name, new in names.items() if new.startswith(prefix)
    }
    if prefix:
        remarks.append(f"{path}: {prefix!r} is left out of {len(inside)} names")
    kept = {name: new for name, new in inside.items() if not new.startswith(BESIDE[model])}
    if left := [name for name in tensors if name not in kept]:
        remarks.append(
            f"{path}: {len(left)} tensors are not of the {model}, and are not read: {_some(left)}"
        )
    if twice := [new for new, count in Counter(kept.values()).items() if count > 1]:
        raise ValueError(f"{path} holds several tensors of one name: {_some(twice)}")
    return Found({new: tensors[name] for name, new in kept.items()}, remarks)


def _prefix(path: Path, names: Iterable[str], anchor: str) -> str:
    found = {name.removesuffix(anchor) for name in names if f".{name}".endswith(f".{anchor}")}
    if "" in found or not found:
        return ""
    if len(found) > 1:
        several = " and ".join(repr(prefix) for prefix in sorted(found))
        raise ValueError(
            f"{path} holds several sets of weights, in names that begin with {several}"
        )
    return found.pop()


def _kind(names: Iterable[str]) -> Model | None:
    if any(name.startswith("diffloss.") for name in names):
        return "generator"
    if any(name.startswith(("post_quant_conv.", "decoder.conv_in.")) for name in names):
        return "tokenizer"
    return None


def _type(value: object) -> str:
    return f"a value of type {inert.name_of(value)}"


def _some(names: Iterable[str]) -> str:
    shown = list(names)
    if not shown:
        return "(none)"
    more = f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
    return ", ".join(shown[:SHOWN]) + more
