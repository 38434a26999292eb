"""What a stage sees while it runs: its folders, its device, its parameters, and its record.

How a stage is started, checked, locked, resumed and tracked is in `stages.runner`.
"""

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from mar import distributed
from mar.config import Config
from mar.distributed import Parallel
from mar.files import atomic, seal
from mar.files.seal import DamagedFileError
from stages import params
from stages.cpus import count_cpus


T = TypeVar("T")
ConfigT = TypeVar("ConfigT", bound=Config)

OUT = Path("out")


class Record(Protocol):
    """The MLflow run of a stage; nothing is computed from it (`stages.tracking.Run`)."""

    def params(self, values: Mapping[str, object]) -> None:
        """Log parameters."""
        ...

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log numbers at a step."""
        ...

    def tags(self, values: Mapping[str, str]) -> None:
        """Log what numbers were measured with, as text."""
        ...

    def picture(self, path: Path, name: str = "") -> None:
        """Log a picture."""
        ...

    def document(self, path: Path) -> None:
        """Log a file that a browser shows."""
        ...

    def step_picture(self, path: Path, key: str, step: int) -> None:
        """Log a picture of a training at a step."""
        ...

    def speeds(self, values: Mapping[str, float]) -> None:
        """Log wall-clock speeds and times."""
        ...


@dataclass(frozen=True)
class Stage:
    """One stage while it runs.

    Attributes:
        name: Its name in `dvc.yaml`.
        out: The folder of its outputs.
        work: The folder from which a killed stage continues.
        device: Where its tensors live (`MAR_DEVICE`; by default the first accelerator, else CPU).
        run: Its MLflow run.
    """

    name: str
    out: Path
    work: Path
    device: torch.device
    run: Record

    @property
    def root(self) -> Path:
        """The repository, also from within a temporary copy that DVC made for an experiment."""
        return root()

    @property
    def workers(self) -> int:
        """Processes that decode images (`MAR_WORKERS`; by default one per CPU that is ours)."""
        return read_count("MAR_WORKERS", count_cpus(), least=0)

    @property
    def micro_batch(self) -> int:
        """Images whose activations are held at a time (`MAR_MICRO_BATCH`)."""
        return read_count("MAR_MICRO_BATCH", 256, least=1)

    @property
    def checkpointing(self) -> bool:
        """Whether activations are computed again instead of kept (`MAR_CHECKPOINTING`)."""
        return read_count("MAR_CHECKPOINTING", 0, least=0) > 0

    @property
    def parallel(self) -> Parallel:
        """How several processes train the generator (`MAR_PARALLEL`: ddp or fsdp).

        Raises:
            ValueError: it is something else.
        """
        match os.environ.get("MAR_PARALLEL") or "ddp":
            case "ddp":
                return "ddp"
            case "fsdp":
                return "fsdp"
            case found:
                raise ValueError(f"MAR_PARALLEL: must be ddp or fsdp, got {found!r}")

    @property
    def cache_on_device(self) -> bool | None:
        """Whether its device holds all latents in training (`MAR_CACHE_ON_DEVICE`).

        None, the default, is up to `LatentCache`: a GPU holds what takes at most half of its free
        memory.
        """
        chosen = read_count("MAR_CACHE_ON_DEVICE", 0, least=0)
        return chosen > 0 if os.environ.get("MAR_CACHE_ON_DEVICE") else None

    @property
    def compiles(self) -> bool:
        """Whether the generator's blocks are compiled (`MAR_COMPILE`; by default on CUDA alone)."""
        return read_count("MAR_COMPILE", int(self.device.type == "cuda"), least=0) > 0

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of a forward pass on its device."""
        return autocast(self.device)

    def params(self, section: str, kind: type[T] | Any) -> T:
        """Load a section of `params.yaml`, or one key of it (`data.image_size`), and log it."""
        config: T = params.load(section, kind)
        self.run.params({section: config.model_dump() if isinstance(config, Config) else config})
        return config

    def keys(self, section: str, kind: type[ConfigT]) -> ConfigT:
        """Load those keys of a section of `params.yaml` that a config has, and log them.

        So `dvc.yaml` can declare these alone: an edit of the others does not run the stage again.
        """
        config = params.load_keys(section, kind)
        self.run.params({section: config.model_dump()})
        return config

    def write_metrics(self, values: dict[str, Any]) -> None:
        """Write `metrics.json`, and log the numbers.

        It is an output of the stage, so it holds nothing but functions of what the stage declares;
        speeds and times go to `log_speeds`.
        """
        self.run.metrics(values)
        if distributed.is_main():
            atomic.write_json(self.out / "metrics.json", values)

    def warn(self, warnings: Iterable[str | None]) -> list[str]:
        """Tell a person what is likely a mistake or misread; return what was said."""
        said = [warning for warning in warnings if warning is not None]
        if distributed.is_main():
            sys.stderr.writelines(f"{self.name}: {warning}\n" for warning in said)
        return said

    def log_speeds(self, **values: float | None) -> None:
        """Log what differs from run to run: to MLflow, and to `work/speeds/<stage>.json`."""
        self.run.speeds({name: value for name, value in values.items() if value is not None})

    def is_made(self, path: Path) -> bool:
        """Say whether an earlier start of the stage has made a file of its work folder.

        A damaged one is removed, which is said, so that it is made again.
        """
        if not path.is_file():
            return False
        try:
            seal.check(path)
        except DamagedFileError as error:
            sys.stderr.write(f"{self.name}: {error}; it is made again\n")
            path.unlink()
            return False
        return True

    def preview(self, kind: str, **values: Any) -> None:
        """Draw a picture of the work so far, for people, with `stages.previews.<kind>`.

        Nothing is computed from it, so its code is no dependency of the stage and is loaded by
        name. A picture that cannot be drawn (an early sample is NaN, the disk is full) is reported
        and ends no training.
        """
        if not distributed.is_main():
            return
        try:
            getattr(import_module("stages.previews"), kind)(self, **values)
        except Exception as error:  # its code may be edited meanwhile, so anything can happen
            sys.stderr.write(f"{self.name}: no picture: {type(error).__name__}: {error}\n")

    def preflight(self, **values: Any) -> None:
        """Compare the inputs of a long training with one another (`stages.preflight`).

        It can stop a training and never change its result, so it is loaded by name.

        Raises:
            ValueError: inputs do not belong together.
        """
        found = distributed.from_main(
            lambda: import_module("stages.preflight").check(self, **values)
        )
        self.run.metrics({f"preflight/{name}": value for name, value in found.items()})


def run(main: Callable[[Stage], None]) -> None:
    """Run a stage's `main` as a program.

    By name, not by an import statement: what starts, checks and records a stage decides whether it
    runs and never what it computes, so editing that code must not make DVC run any stage again.
    """
    import_module("stages.runner").run(main)


def root() -> Path:
    """Return the repository's root, also inside a copy made for an experiment.

    Of a copy that is not its own, DVC does not know: `MAR_ROOT` then says whose it is.
    """
    return Path(os.environ.get("MAR_ROOT") or os.environ.get("DVC_ROOT") or ".").resolve()


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return the context of a forward pass: bfloat16 on a GPU, float32 elsewhere."""
    if device.type == "cuda":
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return nullcontext()


def read_count(variable: str, default: int, *, least: int) -> int:
    """Return a whole number from the environment.

    Raises:
        ValueError: it is not a whole number, or too small.
    """
    text = os.environ.get(variable) or str(default)
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"{variable}: must be a whole number, {least} or more, got {text!r}")
    return int(text)
