"""Drive a training: continue a killed one, show progress, keep curves and checkpoints."""

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import pandas as pd
import torch
from tqdm import tqdm

from mar import distributed
from mar.files import atomic
from mar.files.seal import DamagedFileError
from mar.training.checkpoints import Checkpoints, History
from mar.training.step import DivergedError, Step
from mar.training.trainer import Trainer
from stages.disk import room_for_checkpoints
from stages.signals import DeferredSignals
from stages.stage import Stage, read_count


SHOWN = 20  # samples in a message, points of the curves in a dump


def run(
    stage: Stage,
    trainer: Trainer,
    steps: Callable[[], Iterator[Step]],
    preview: Callable[[int], None],
    measures: Mapping[str, Callable[[], float | None]] | None = None,
    *,
    broken_samples: Callable[[int], list[str]],
    after_step: Callable[[int], None] = lambda step: None,
    mfu: Callable[[float], float | None] = lambda images_per_second: None,
    other_bytes: int = 0,
) -> History:
    """Take the steps that are left and return the curves; `curves.csv` holds them as well.

    Args:
        stage: The stage that trains.
        trainer: What is trained.
        steps: Begins the steps that are left, once an earlier checkpoint is loaded.
        preview: Draws a picture of the work after a number of steps.
        measures: What is measured beside each picture, where it can be; each has a curve of its
            own, `<name>.csv`: they have few points, and plots take an empty cell for zero.
        broken_samples: Names the samples of the batch of a step (from 0) whose loss is not finite.
        after_step: Is called after each step, before its checkpoint is written.
        mfu: The share of the GPUs' peak (MFU) at a number of images per second, where it is known.
        other_bytes: What the training writes besides checkpoints.

    Raises:
        DivergedError: the training has diverged, twice if there is a checkpoint to go back to.
        ValueError: the disk has no room for the checkpoints.
    """
    folder, keep = stage.work / "checkpoints", read_count("MAR_KEEP_CHECKPOINTS", 2, least=1)
    checkpoints = Checkpoints(folder, keep=keep)
    if trainer.config.steps:
        each = trainer.checkpoint_bytes()
        said = distributed.from_main(lambda: room_for_checkpoints(each, keep, other_bytes, folder))
        if distributed.is_main():
            sys.stderr.write(f"{stage.name}: {said}\n")
    training = _Training(
        stage, trainer, checkpoints, steps, preview, measures or {}, broken_samples, after_step, mfu
    )
    training.resume()
    training.run()
    checkpoints.wait()
    if distributed.is_main():
        _write_curves(stage, training.history, list(measures or {}))
    return training.history


@dataclass
class _Training:
    """A training that goes on from its last checkpoint, and back to it where it diverges."""

    stage: Stage
    trainer: Trainer
    checkpoints: Checkpoints
    steps: Callable[[], Iterator[Step]]
    preview: Callable[[int], None]
    measures: Mapping[str, Callable[[], float | None]]
    broken_samples: Callable[[int], list[str]]
    after_step: Callable[[int], None]
    mfu: Callable[[float], float | None]
    history: History = field(default_factory=list[dict[str, float | int]])

    def resume(self) -> None:
        """Continue from the last checkpoint that is whole."""
        damaged = False
        for path in self.checkpoints.paths():
            try:
                self.history = self.trainer.load(self.checkpoints, path)
            except DamagedFileError as error:
                self._say(f"{error}; {path} is removed")
                self.checkpoints.remove(path)
                damaged = True
                continue
            step, num_steps = self.trainer.step, self.trainer.config.steps
            if damaged:
                self._say(f"goes on from step {step}, of {path}")
            if step < num_steps:
                self._say(f"continuing from step {step} of {num_steps}")
            return
        if damaged:
            self._say("no other checkpoint is kept, so it begins at step 0")

    def run(self) -> None:
        """Take the steps that are left.

        Raises:
            DivergedError: it diverges again after it went back to its last checkpoint.
        """
        begun, speed = self.trainer.step, _Speed(self.trainer.config.batch_size, self.trainer.step)
        went_back = False
        while True:
            try:
                self._take_steps(speed)
                break
            except DivergedError as error:
                self.checkpoints.wait()
                path = next(iter(self.checkpoints.paths()), None)
                if went_back or path is None:
                    raise self._explain(error) from None
                self._say(f"{error}; back to {path}, once")
                self.history = self.trainer.load(self.checkpoints, path)
                speed.back_to(self.trainer.step)
                went_back = True
        if self.trainer.step == begun:  # there was nothing to train, but what there is can be seen
            self.preview(self.trainer.step)
        else:  # DVC has yet to record what is made of it
            self.save()
        self.stage.log_speeds(images_per_second=speed.mean())

    def _explain(self, error: DivergedError) -> DivergedError:
        """Name the samples that a training diverged at, and keep what is known of it."""
        step = self.trainer.step
        samples = self.broken_samples(step - 1)
        path = self.stage.work / "diverged.json"
        if distributed.is_main():
            found = {"message": str(error), "step": step, "samples": samples}
            atomic.write_json(path, {**found, "curves": self.history[-SHOWN:]})
        names = ", ".join(samples[:SHOWN]) + (", ..." if len(samples) > SHOWN else "")
        at = f"with {names}" if samples else "with no single sample of its batch"
        return DivergedError(f"{error}; {at} ({path} says more)")

    def save(self) -> None:
        """Begin to write a checkpoint."""
        self.trainer.save(self.checkpoints, self.history)

    def save_and_wait(self) -> None:
        """Write a checkpoint, before the process ends."""
        self.save()
        self.checkpoints.wait()

    def _take_steps(self, speed: "_Speed") -> None:
        config = self.trainer.config
        interval = _Interval(read_count("MAR_CHECKPOINT_SECONDS", 30, least=1))
        progress_bar = tqdm(
            total=config.steps,
            initial=self.trainer.step,
            desc=self.stage.name,
            unit="step",
            mininterval=1,
            disable=not distributed.is_main(),
        )
        # SIGTERM, SIGUSR1 and Ctrl-C end the training between two steps, with a checkpoint of
        # where it is. All processes end, or save, after the same step.
        with DeferredSignals() as signals, progress_bar as progress:
            for step in self.steps():
                progress.update()
                with speed.paused():
                    self.after_step(step.index)
                last = step.index == config.steps
                point = step.index % config.curve_steps == 0 or last
                pictured = step.index % config.preview_steps == 0 or last
                if point or pictured:
                    values = self._measure(step, speed, point=point, pictured=pictured)
                    progress.set_postfix(loss=f"{values.get('loss', math.nan):.4g}", refresh=False)
                if pictured:  # a picture can take minutes, and is in no checkpoint
                    with speed.paused(), self._interruptible(signals):
                        self.preview(step.index)
                early, busy, ended = distributed.agree(
                    int(last or not interval.due()),
                    int(self.checkpoints.is_saving()),
                    int(signals.noted),
                )
                # A diverged training is never kept.
                if not early and not busy and not _is_skipped(step):
                    with speed.paused(), interval.saving():
                        self.save()
                if ended:
                    self.save_and_wait()
                    signals.deliver()
                    raise SystemExit(128 + signal.SIGTERM)  # it was another process's signal

    def _interruptible(self, signals: DeferredSignals) -> AbstractContextManager[None]:
        """Let a signal end what has no end in sight, if no other process takes part in saving."""
        if distributed.is_distributed():
            return nullcontext()
        return signals.immediate(self.save_and_wait)

    def _measure(
        self, step: Step, speed: "_Speed", *, point: bool, pictured: bool
    ) -> dict[str, float]:
        """Return the numbers of a step, and note them in the curves."""
        values = step.values()  # waits for the device, and refuses a diverged training
        seen: dict[str, float] = {}
        if pictured and distributed.is_main():
            with speed.paused():
                found = {name: measure() for name, measure in self.measures.items()}
            seen = {name: value for name, value in found.items() if value is not None}
        if point or seen:
            values |= seen
            self.history.append({"step": step.index, **values})
            rate = speed.measure(step.index)
            speeds = {"images_per_second": rate, **_memory(self.stage.device)}
            if (mfu := self.mfu(rate)) is not None:
                speeds["mfu"] = mfu
            self.stage.run.metrics(values | speeds, step.index)
        return values

    def _say(self, text: str) -> None:
        if distributed.is_main():
            sys.stderr.write(f"{self.stage.name}: {text}\n")


def _is_skipped(step: Step) -> bool:
    """Whether a step was skipped; raises DivergedError where too many were."""
    step.values()
    return step.is_skipped


def _memory(device: torch.device) -> dict[str, float]:
    """Return the most memory of a GPU that tensors have taken, in GiB."""
    if device.type != "cuda":
        return {}
    return {"peak_gpu_memory_gib": torch.cuda.max_memory_allocated(device) / 1024**3}


def _write_curves(stage: Stage, history: History, measured: Sequence[str]) -> None:
    """Write the curves, a column for each number.

    Without points there is the header alone, with what every training has.
    """
    columns = None if history else ["step", "loss"]
    tables = {
        "curves": pd.DataFrame(history, columns=columns).drop(columns=measured, errors="ignore")
    }
    for name in measured:
        points = [{"step": point["step"], name: point[name]} for point in history if name in point]
        tables[name] = pd.DataFrame(points, columns=["step", name])
    for name, table in tables.items():
        atomic.write_text(stage.out / f"{name}.csv", table.to_csv(index=False))


class _Interval:
    """When to write a checkpoint: after some seconds, but for 2 % of the time at most.

    What counts is how long the training waits: for the copy, not for the disk.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next = time.monotonic() + seconds

    def due(self) -> bool:
        return time.monotonic() >= self._next

    @contextmanager
    def saving(self) -> Iterator[None]:
        started = time.monotonic()
        yield
        now = time.monotonic()
        self._next = now + max(self._seconds, 49 * (now - started))


class _Speed:
    """Images per second between two points of a curve, without what is not training."""

    def __init__(self, batch_size: int, step: int) -> None:
        self._batch_size = batch_size
        self._step = step
        self._since = time.monotonic()
        self._images, self._seconds = 0, 0.0  # in all, since this start

    def measure(self, step: int) -> float:
        now = time.monotonic()
        images, seconds = (step - self._step) * self._batch_size, max(now - self._since, 1e-9)
        self._images += images
        self._seconds += seconds
        self._step, self._since = step, now
        return images / seconds

    def back_to(self, step: int) -> None:
        self._step, self._since = step, time.monotonic()

    def mean(self) -> float | None:
        return self._images / self._seconds if self._seconds else None

    @contextmanager
    def paused(self) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._since += time.monotonic() - started
