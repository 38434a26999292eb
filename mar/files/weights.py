"""Files of tensors and, in the same file, what they are and their seal (`mar.files.seal`)."""
# safetensors has no types for what an opened file gives:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mar.files import seal


NAME = "mar"  # the key of the description
SHOWN = 5  # problems of each kind in a message


def save(path: Path, model: nn.Module, description: dict[str, Any]) -> None:
    """Write a model's tensors and a description of it, as one safetensors file."""
    write_tensors(path, model.state_dict(), description)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]
) -> None:
    """Write tensors and a description of them, as one safetensors file."""
    owned = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # One metadata key: safetensors writes several in an order that changes from run to run.
    metadata = {NAME: json.dumps({**description, seal.KEY: seal.BLANK}, sort_keys=True)}
    with seal.sealing(path) as partial:
        save_file(owned, partial, metadata=metadata)


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Give a model the tensors of a file.

    Raises:
        ValueError: they are not those of the model; the message names the file and some of them.
    """
    expected = model.state_dict()
    problems = {
        "missing": [name for name in expected if name not in tensors],
        "unknown": [name for name in tensors if name not in expected],
        "of another shape": [
            f"{name}: {list(tensors[name].shape)}, expected {list(value.shape)}"
            for name, value in expected.items()
            if name in tensors and tensors[name].shape != value.shape
        ],
    }
    try:
        refuse_misfits(problems, len(expected))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    model.load_state_dict(dict(tensors))


def refuse_misfits(problems: Mapping[str, Sequence[str]], num_expected: int) -> None:
    """Raise an error that counts the problems of each kind and names the first.

    Args:
        problems: For each kind ("missing", "unknown") the tensors concerned; none where they fit.
        num_expected: Tensors that a model has.

    Raises:
        ValueError: there are problems.
    """
    if not any(problems.values()):
        return
    kinds: list[str] = []
    for kind, found in problems.items():
        more = [f"{len(found) - SHOWN} more"] if len(found) > SHOWN else []
        if found:
            kinds.append(f"{len(found)} {kind} ({'; '.join([*found[:SHOWN], *more])})")
    raise ValueError(f"tensors do not fit the {num_expected} expected: {', '.join(kinds)}")


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save` or `write_tensors` wrote.

    Raises:
        ValueError: the file is missing, damaged, or was written by another program.
    """
    seal.check(path)
    try:
        with safe_open(path, "pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from None
    if NAME not in metadata:
        raise ValueError(f"{path} does not say what model it holds")
    description: dict[str, Any] = json.loads(metadata[NAME])
    del description[seal.KEY]
    return tensors, description
