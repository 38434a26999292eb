"""Drive a training: continue a killed one, show progress, keep curves and checkpoints."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from mar.files import atomic
from mar.files.seal import DamagedFileError
from mar.training.trainer import History, OptimisationConfig, Step, Trainer
from stages.signals import DeferredSignals
from stages.stage import Stage, read_count


def run(
    stage: Stage,
    trainer: Trainer,
    config: OptimisationConfig,
    steps: Callable[[], Iterator[Step]],
    preview: Callable[[int], None],
    measures: Mapping[str, Callable[[], float | None]] | None = None,
) -> History:
    """Take the steps that are left and return the curves; `curves.csv` holds them as well.

    Args:
        stage: The stage that trains.
        trainer: What is trained.
        config: Its section of `params.yaml`.
        steps: Begins the steps that are left, once an earlier checkpoint is loaded.
        preview: Draws a picture of the work after a number of steps.
        measures: What is measured beside each picture, where it can be; each has a curve of its
            own, `<name>.csv`: they have few points, and plots take an empty cell for zero.
    """
    checkpoint = stage.work / "checkpoint.pt"
    history = _resume(stage, trainer, checkpoint)
    measures = measures or {}
    begun = trainer.step
    interval = _Interval(read_count("MAR_CHECKPOINT_SECONDS", 30, least=1))
    speed = _Speed(config.batch_size, trainer.step)

    def save() -> None:
        _save(trainer, checkpoint, history)

    progress_bar = tqdm(
        total=config.steps, initial=trainer.step, desc=stage.name, unit="step", mininterval=1
    )
    # SIGTERM and Ctrl-C end the training between two steps, with a checkpoint of where it is.
    with DeferredSignals() as signals, progress_bar as progress:
        for step in steps():
            progress.update()
            last = step.index == config.steps
            point = step.index % config.curve_steps == 0 or last
            pictured = step.index % config.preview_steps == 0 or last
            if point or pictured:
                values = step.values()  # waits for the device, and refuses a diverged training
                with speed.paused():
                    seen = _measure(measures) if pictured else {}
                if point or seen:
                    values |= seen
                    history.append({"step": step.index, **values})
                    speeds = {"images_per_second": speed.measure(step.index)}
                    stage.run.metrics(values | speeds, step.index)
                    progress.set_postfix(loss=f"{values['loss']:.4g}", refresh=False)
            if pictured:  # a picture can take minutes, and is in no checkpoint
                with speed.paused(), signals.immediate(save):
                    preview(step.index)
            if interval.due() and not last:
                step.values()  # never keep a diverged training
                with speed.paused(), interval.saving():
                    save()
            signals.deliver(save)
    if trainer.step == begun:  # there was nothing to train, but what there is can be seen
        preview(trainer.step)
    else:  # DVC has yet to record what is made of it
        save()
    stage.log_speeds(images_per_second=speed.mean())
    _write_curves(stage, history, list(measures))
    return history


def _resume(stage: Stage, trainer: Trainer, checkpoint: Path) -> History:
    """Continue from the last checkpoint that is whole, and return the curves up to there."""
    damaged = False
    for path in (checkpoint, _before(checkpoint)):
        if path.is_file():
            try:
                history = trainer.load(path)
            except DamagedFileError as error:
                sys.stderr.write(f"{stage.name}: {error}; it is removed\n")
                path.unlink()
                damaged = True
                continue
            if damaged:
                sys.stderr.write(f"{stage.name}: goes on from step {trainer.step}, of {path}\n")
            num_steps = trainer.config.steps
            if trainer.step < num_steps:
                sys.stderr.write(
                    f"{stage.name}: continuing from step {trainer.step} of {num_steps}\n"
                )
            return history
    if damaged:
        sys.stderr.write(f"{stage.name}: no other checkpoint is kept, so it begins at step 0\n")
    return []


def _measure(measures: Mapping[str, Callable[[], float | None]]) -> dict[str, float]:
    """Return what can be measured beside a picture."""
    found = {name: measure() for name, measure in measures.items()}
    return {name: value for name, value in found.items() if value is not None}


def _save(trainer: Trainer, checkpoint: Path, history: History) -> None:
    """Write a checkpoint, and keep the one before it; at no time is there none."""
    if checkpoint.is_file():
        before = _before(checkpoint)
        before.unlink(missing_ok=True)
        try:
            os.link(checkpoint, before)
        except OSError:  # a disk without links
            checkpoint.replace(before)
    trainer.save(checkpoint, history)


def _before(checkpoint: Path) -> Path:
    return checkpoint.with_stem(f"{checkpoint.stem}-before")


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
    """When to write a checkpoint: after some seconds, but for a tenth of the time at most."""

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
        self._next = now + max(self._seconds, 9 * (now - started))


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

    def mean(self) -> float | None:
        return self._images / self._seconds if self._seconds else None

    @contextmanager
    def paused(self) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._since += time.monotonic() - started
