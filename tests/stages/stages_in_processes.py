"""Stages as each of several processes that work together runs them.

As a program: `python stages_in_processes.py PROJECT STAGE RENDEZVOUS RANK PROCESSES`.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch
import torch.distributed as dist

from mar import distributed
from mar.files.seal import DamagedFileError
from stages.runner import Silent
from stages.stage import Stage
from stages.tracking import Run


def run(project: Path, names: Sequence[str]) -> None:
    """Run stages in a project in which those before them have run."""
    os.chdir(project)
    os.environ["MAR_WORKERS"] = "0"
    for name in names:
        work = Path("work", name)
        work.mkdir(parents=True, exist_ok=True)
        tracked = Run(name) if distributed.is_main() else Silent()
        stage = Stage(name, Path("out", name), work, torch.device("cpu"), tracked)
        import_module(f"stages.{name}").main(stage)
        distributed.barrier()  # the main process writes its last file after the others are done


def refusal(project: Path, name: str) -> tuple[str, Path | None]:
    """Run a stage that fails; return what it said, and which file it found damaged."""
    try:
        run(project, [name])
    except ValueError as error:
        return str(error), error.path if isinstance(error, DamagedFileError) else None
    raise AssertionError(f"{name} did not fail")


if __name__ == "__main__":
    folder, stage_name, rendezvous, rank, num = sys.argv[1:]
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=int(rank), world_size=int(num)
    )
    run(Path(folder), [stage_name])
    dist.destroy_process_group()
