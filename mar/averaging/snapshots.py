"""Files of averages that a training writes now and then."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mar.files import seal, weights


INDEX = "snapshots.json"


@dataclass(frozen=True)
class Snapshot:
    """An average as it was after a step.

    Attributes:
        width: Its relative width.
        step: The step.
    """

    width: float
    step: int

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"width-{self.width:g}-step-{self.step:09d}.safetensors"

    def write(self, folder: Path, model: nn.Module, dtype: str) -> None:
        """Write the parameters of an averaged model."""
        kind: torch.dtype = getattr(torch, dtype)
        tensors = {name: value.detach().to(kind) for name, value in model.named_parameters()}
        weights.write_tensors(folder / self.file, tensors, asdict(self))

    def read(self, folder: Path) -> dict[str, Tensor]:
        """Return the parameters by their names.

        Raises:
            ValueError: the file is missing, damaged, or another one.
        """
        tensors, description = weights.load(folder / self.file)
        if description != asdict(self):
            raise ValueError(f"{folder / self.file} holds {description}, expected {asdict(self)}")
        return tensors


def write_index(folder: Path, found: Sequence[Snapshot]) -> None:
    """Write the list of the snapshots of a folder, which may be empty."""
    seal.write_json(folder / INDEX, {"snapshots": [asdict(snapshot) for snapshot in found]})


def read_index(folder: Path) -> list[Snapshot]:
    """Return the snapshots of a folder.

    Raises:
        ValueError: the list is missing or damaged.
    """
    listed: list[dict[str, Any]] = seal.read_json(folder / INDEX)["snapshots"]
    return [Snapshot(**fields) for fields in listed]
