"""Files of tensors and, in the same file, what they are."""
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

from mar.files import atomic


SHOWN = 5  # problems of each kind in a message


def save(path: Path, model: nn.Module, description: dict[str, Any]) -> None:
    """Write a model's tensors and a description of it, as one safetensors file."""
    # One metadata key: safetensors writes several in an order that changes from run to run.
    metadata = {"mar": json.dumps(description, sort_keys=True)}
    write_tensors(path, model.state_dict(), metadata)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as one safetensors file."""
    owned = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic.replacing(path) as partial:
        save_file(owned, partial, metadata=dict(metadata or {}))


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
    """Read what `save` wrote.

    Raises:
        ValueError: the file is missing, damaged, or was not written by `save`.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing; the stage that makes it has not run")
    try:
        with safe_open(path, "pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from None
    if "mar" not in metadata:
        raise ValueError(f"{path} does not say what model it holds")
    return tensors, json.loads(metadata["mar"])
