"""How long a training waits for a checkpoint: written while it goes on, against torch.save.

`python -m benchmarks.checkpoint --blocks 2` prints JSON. Both write the same state (weights,
average, AdamW's two moments) to the same disk, in turns, and wait until it is there.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.training_step import TRAINING, Sizes, build
from mar.model.mar import MAR
from mar.training.checkpoints import Checkpoints
from mar.training.generator import new_trainer
from mar.training.trainer import Trainer


def make_trainer(width: int, blocks: int) -> Trainer[MAR]:
    """Return a trainer of MAR with the paper's tokens (16 x 16 of 16 channels)."""
    sizes = Sizes(width=width, blocks=blocks, heads=8, denoiser_width=1024, classes=1000)
    return new_trainer(build(sizes), TRAINING)


def measure(trainer: Trainer[MAR], folder: Path, rounds: int) -> dict[str, float]:
    """Return medians in seconds, and the size of a checkpoint in GB."""
    checkpoints = Checkpoints(folder / "checkpoints", keep=1)
    waited: list[float] = []
    written: list[float] = []
    synchronous: list[float] = []
    for number in range(rounds):
        trainer.step = number
        started = time.perf_counter()
        trainer.save(checkpoints, [])
        waited.append(time.perf_counter() - started)
        checkpoints.wait()
        written.append(time.perf_counter() - started)

        started = time.perf_counter()
        path = folder / "state.pt"
        torch.save({name: part.state_dict() for name, part in trainer.parts().items()}, path)
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        synchronous.append(time.perf_counter() - started)
    size = sum(file.stat().st_size for file in checkpoints.paths()[0].iterdir())
    started = time.perf_counter()
    trainer.load(checkpoints, checkpoints.paths()[0])
    loaded = time.perf_counter() - started
    return {
        "gigabytes": size / 1e9,
        "training_waits_seconds": statistics.median(waited),
        "on_disk_seconds": statistics.median(written),
        "torch_save_seconds": statistics.median(synchronous),
        "waits_less_by": statistics.median(synchronous) / statistics.median(waited),
        "checked_and_loaded_seconds": loaded,
    }


def main() -> None:
    """Read the command line, measure, and print JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint", description=__doc__)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk to measure (default: temporary)")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        trainer = make_trainer(arguments.width, arguments.blocks)
        print(json.dumps(measure(trainer, folder, arguments.rounds), indent=2))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
