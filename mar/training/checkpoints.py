"""Checkpoints of a training: folders that any number of processes writes and any number reads.

A checkpoint is a folder `step-<number>`, of torch.distributed.checkpoint: a file for each process,
with its shards of the weights and of the optimiser's state. `checkpoint.json` holds the step, the
curves, and the SHA-256 of every file, and is sealed itself, so a damaged checkpoint is recognised.
A folder has its name only once all of it is on the disk.

Saving copies the state to memory and writes it while the training goes on.
"""
# torch.distributed has few types:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import os
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from mar import distributed
from mar.files import atomic, seal
from mar.files.atomic import UnwritableError
from mar.files.seal import DamagedFileError


History = list[dict[str, float | int]]  # points of curves: a step and the numbers measured at it

DESCRIPTION = "checkpoint.json"


@runtime_checkable
class Stateful(Protocol):
    """Something whose state a checkpoint can hold: a model, an optimiser."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> object:
        """Restore a state."""
        ...


@dataclass(frozen=True)
class Loaded:
    """A checkpoint that was read: its step, and the curves up to there."""

    path: Path
    step: int
    history: History


class Checkpoints:
    """The checkpoints of one training, of which the last few are kept.

    In several processes all of them call every method, in the same order.
    """

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        """Open a folder; what an interrupted save has left is removed.

        Args:
            folder: Where the checkpoints lie; all processes must see it.
            keep: How many are kept.
        """
        self._folder, self._keep = folder, keep
        self._worker = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None
        # The copy in pinned memory is kept, which makes the next one from a GPU fast.
        self._stager = BlockingAsyncStager(cache_staged_state_dict=torch.cuda.is_available())
        # The worker's messages between processes do not mix with those of the training.
        self._group: ProcessGroup | None = None
        if distributed.is_distributed():
            group = dist.new_group(backend="gloo")
            assert isinstance(group, ProcessGroup)
            self._group = group
        if distributed.is_main():
            folder.mkdir(parents=True, exist_ok=True)
            for partial in folder.glob("*.partial"):
                shutil.rmtree(partial)
        distributed.barrier()

    def paths(self) -> list[Path]:
        """Return the checkpoints that are there, the newest first."""
        return distributed.from_main(self._listed)

    def remove(self, path: Path) -> None:
        """Remove a checkpoint, so that one of which some files are gone is never found."""
        if distributed.is_main():
            _remove(path)
        distributed.barrier()

    def _listed(self) -> list[Path]:
        return sorted(self._folder.glob("step-*[0-9]"), reverse=True)

    def save(self, parts: Mapping[str, Stateful], step: int, history: History) -> None:
        """Begin to write a checkpoint; it returns when the state is copied.

        If there is one of this step, nothing is written: it holds the same.

        Raises:
            OSError: an earlier one could not be written.
        """
        self.wait()
        final = self._folder / f"step-{step:09d}"
        if distributed.from_main(final.exists):
            return
        partial = final.with_name(final.name + ".partial")
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # said of one process
        written = async_save(
            {name: part.state_dict() for name, part in parts.items()},
            storage_writer=FileSystemWriter(partial, per_thread_copy_ahead=0),  # it is copied
            process_group=self._group,
            async_stager=self._stager,
        )
        assert isinstance(written, Future)
        description = {"step": step, "history": list(history)}
        self._pending = self._worker.submit(self._complete, written, partial, final, description)

    def is_saving(self) -> bool:
        """Whether a checkpoint is still being written.

        Raises:
            OSError: it could not be written.
        """
        if self._pending is not None and self._pending.done():
            self.wait()
        return self._pending is not None

    def wait(self) -> None:
        """Wait until the checkpoint is written.

        Raises:
            OSError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def load(self, path: Path, parts: Mapping[str, Stateful]) -> Loaded:
        """Restore the state of everything from a checkpoint.

        Raises:
            DamagedFileError: it is not what was written; nothing has changed.
        """
        description = distributed.from_main(lambda: _describe(path))
        problem: DamagedFileError | None = None
        for name, expected in distributed.share(sorted(description["files"].items())):
            file = path / name
            try:
                if atomic.digest(file) != expected:
                    problem = DamagedFileError(
                        file, "is damaged: it has another SHA-256 than when it was written"
                    )
            except OSError as error:
                problem = DamagedFileError(file, f"cannot be read: {error.strerror or error}")
        for found in distributed.gather(problem):
            if found is not None:
                raise found
        state = {name: part.state_dict() for name, part in parts.items()}
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        load(state, storage_reader=FileSystemReader(path), process_group=self._group)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return Loaded(path, description["step"], description["history"])

    def _complete(
        self, written: Future[Any], partial: Path, final: Path, description: dict[str, Any]
    ) -> None:
        """Wait for the files, seal them, and give the folder its name."""
        try:
            written.result()
        except CheckpointException as failures:
            error = next(iter(failures.failures.values()))[0]
            if isinstance(error, OSError):
                raise UnwritableError(partial, error) from None
            raise error from None
        mine = sorted(partial.glob(f"__{distributed.rank()}_*"))
        digests = {file.name: atomic.digest(file) for file in mine}
        if self._group is not None:
            gathered: list[Any] = [None] * distributed.num_processes()
            dist.all_gather_object(gathered, digests, group=self._group)
            digests = {name: value for part in gathered for name, value in part.items()}
        failure: OSError | None = None
        if distributed.is_main():
            try:
                self._seal(partial, final, {**description, "files": digests})
            except OSError as error:
                failure = error
        if self._group is not None:  # all have it now, or none
            outcome = [None if failure is None else str(failure)]
            dist.broadcast_object_list(outcome, group=self._group)
            if outcome[0] is not None and failure is None:
                failure = OSError(outcome[0])
        if failure is not None:
            raise failure

    def _seal(self, partial: Path, final: Path, description: dict[str, Any]) -> None:
        digests = description["files"]
        digests[".metadata"] = atomic.digest(partial / ".metadata")
        seal.write_json(partial / DESCRIPTION, description)
        partial.rename(final)
        _sync(self._folder)
        for old in self._listed()[self._keep :]:
            _remove(old)


def _describe(path: Path) -> dict[str, Any]:
    """Return what a checkpoint says of itself.

    Raises:
        DamagedFileError: it is damaged, unreadable or missing.
    """
    file = path / DESCRIPTION
    if not file.is_file():
        raise DamagedFileError(file, "is missing")
    try:
        return seal.read_json(file)
    except OSError as error:
        raise DamagedFileError(file, f"cannot be read: {error.strerror or error}") from None


def _remove(path: Path) -> None:
    remains = path.with_name(path.name + ".partial")
    shutil.rmtree(remains, ignore_errors=True)
    path.rename(remains)
    shutil.rmtree(remains)


def _sync(folder: Path) -> None:
    """Put the names in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
