"""Keep the averages of a training's steps, from which others are rebuilt after it."""

import sys
from pathlib import Path

import torch

from mar import distributed
from mar.averaging.power import AveragesConfig, snapshot_steps
from mar.averaging.snapshots import Snapshot, write_index
from mar.files import atomic
from mar.training.trainer import Trainer
from stages.stage import Stage


class Snapshots:
    """The averages that a training writes now and then, to its work folder until it ends."""

    def __init__(self, stage: Stage, trainer: Trainer, config: AveragesConfig | None) -> None:
        """Plan what is written when; nothing without a config."""
        self._stage, self._trainer = stage, trainer
        self._dtype = config.dtype if config else ""
        self._steps = snapshot_steps(trainer.config.steps, config.snapshots) if config else []

    @property
    def _folder(self) -> Path:
        return self._stage.work / "averages"

    def _planned(self) -> list[Snapshot]:
        return [Snapshot(width, step) for width in self._trainer.averages for step in self._steps]

    @property
    def missing_bytes(self) -> int:
        """How many bytes the snapshots take that are still to be written."""
        number = sum(parameter.numel() for parameter in self._trainer.model.parameters())
        left = [each for each in self._planned() if not (self._folder / each.file).is_file()]
        return len(left) * number * getattr(torch, self._dtype).itemsize if left else 0

    def keep(self, step: int) -> None:
        """Write the averages after a step, if it is one of those planned.

        All processes call it, before the step's checkpoint is written: so a training that goes on
        from a checkpoint has all snapshots up to there.
        """
        if step not in self._steps:
            return
        for width in self._trainer.averages:
            if (model := self._trainer.whole_average(width)) is not None:
                Snapshot(width, step).write(self._folder, model, self._dtype)

    def publish(self) -> None:
        """Make all of them an output, with the list of them, which is empty where none are kept."""
        if not distributed.is_main():
            return
        planned = self._planned()
        found = [each for each in planned if self._stage.is_made(self._folder / each.file)]
        if missing := [each.file for each in planned if each not in found]:
            sys.stderr.write(
                f"{self._stage.name}: without the averages {', '.join(missing)}, which were there "
                "before and cannot be made again\n"
            )
        write_index(self._folder, found)
        atomic.publish_folder(self._folder, self._stage.out / "averages")
