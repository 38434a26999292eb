"""A stage runs in several processes, survives the loss of one, and goes on with any number."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_project as tiny
from processes import in_processes
from stages_in_processes import run

from mar.files.atomic import digest


OUTPUTS = ("generator.safetensors", "ema.safetensors")
STEPS = 600


def start(
    project: Path, module: str = "stages.train_generator", **environment: str
) -> subprocess.Popen[str]:
    # Dropout is drawn for each micro-batch, so these are the same whoever trains.
    own = {"MAR_PROCESSES": "2", "MAR_MICRO_BATCH": "4", "MAR_CHECKPOINT_SECONDS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", module],
        cwd=project,
        env={**os.environ, **own, "OMP_NUM_THREADS": "1", **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a process to end well, and return what it said."""
    said = process.communicate(timeout=500)[1]
    assert process.returncode == 0, said
    return said


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 500
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def children(process: subprocess.Popen[str]) -> list[int]:
    """Return the processes that work for a launcher."""
    found = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(process.pid)], capture_output=True, text=True
    )
    lines = [line.split(maxsplit=1) for line in found.stdout.splitlines()]
    return [int(pid) for pid, command in lines if "-m stages." in command]


def saved_steps(project: Path) -> list[int]:
    found = (project / "work/train_generator").glob("*/checkpoints/step-*[0-9]")
    return sorted(int(path.name.removeprefix("step-")) for path in found)


def undisturbed(project: Path) -> dict[str, str]:
    """Train in two processes in a copy of a project; return the digests of the weights."""
    copy = project.parent / "undisturbed"
    shutil.copytree(project, copy, symlinks=True)
    in_processes(run, 2, project.parent / "group", copy, ["train_generator"])
    return digests(copy)


def digests(project: Path) -> dict[str, str]:
    return {name: digest(project / "out/train_generator" / name) for name in OUTPUTS}


def prepare(project: Path, finished: Path, **training: object) -> None:
    """Make everything ready to train."""
    shutil.copytree(finished / "out", project / "out")
    shutil.rmtree(project / "out/train_generator")
    params = tiny.tiny_params()
    params["training"] |= {"steps": STEPS, "preview_steps": STEPS, "curve_steps": 10, **training}
    (project / "params.yaml").write_text(json.dumps(params))


@pytest.mark.slow
def test_lost_processes_and_signals_lose_nothing(project: Path, finished: Path) -> None:
    prepare(project, finished)
    expected = undisturbed(project)

    # Of two processes one is killed: both start again from the last checkpoint.
    running = start(project)
    wait_until(lambda: saved_steps(project))
    before = saved_steps(project)[-1]
    os.kill(children(running)[1], signal.SIGKILL)
    wait_until(lambda: len(children(running)) == 2 and max(saved_steps(project)) > before)
    # Then both are told to end; they save, and two others go on.
    running.send_signal(signal.SIGTERM)
    said = running.communicate()[1]
    assert running.returncode == 128 + signal.SIGTERM
    assert "was killed (SIGKILL); all start again from the last checkpoint (1 of 3)" in said
    assert "Traceback" not in said
    assert not (project / "out/train_generator/ema.safetensors").exists()
    reached = saved_steps(project)[-1]
    said = finish(start(project))
    assert f"train_generator: continuing from step {reached} of {STEPS}" in said
    assert digests(project) == expected


@pytest.mark.slow
def test_processes_end_with_the_one_that_started_them(project: Path, finished: Path) -> None:
    prepare(project, finished, steps=100_000)
    running = start(project)
    wait_until(lambda: saved_steps(project))
    workers = children(running)
    assert len(workers) == 2
    running.kill()
    running.communicate(timeout=100)  # its pipe is closed once the processes have ended too
    wait_until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in workers))


def test_a_mistake_is_said_once(project: Path, finished: Path) -> None:
    prepare(project, finished, batch_size=9)
    running = start(project)
    said = running.communicate()[1]
    assert running.returncode == 1
    message = "train_generator: training.batch_size: 9 does not divide among 2 processes\n"
    assert said.count(message) == 1
    assert "Traceback" not in said


@pytest.mark.slow
def test_another_machine_joins(project: Path, finished: Path) -> None:
    """Here both are this machine, with one process each."""
    prepare(project, finished, steps=6)
    expected = undisturbed(project)
    world = {"MAR_PROCESSES": "1", "MAR_NODES": "2", "MAR_RENDEZVOUS": "127.0.0.1:29471"}
    other = start(project, "stages.join", MAR_NODE="1", **world)
    first = start(project, **world)
    try:
        finish(first)
    finally:
        first.kill()
        other.terminate()
    said = other.communicate()[1]
    assert "join: train_generator as machine 1 of 2\n" in said
    assert other.returncode == 128 + signal.SIGTERM
    assert digests(project) == expected


@pytest.mark.slow
def test_tasks_of_srun_find_one_another(project: Path, finished: Path) -> None:
    prepare(project, finished, steps=4)
    step = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
    step |= {"SLURM_NTASKS": "2", "MAR_PROCESSES": ""}
    tasks = [start(project, **step, SLURM_PROCID=str(rank)) for rank in range(2)]
    said = [task.communicate(timeout=500)[1] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], said
    assert said[1] == ""
    assert (project / "out/train_generator/ema.safetensors").exists()


def test_a_machine_without_a_number_of_its_own_is_refused(project: Path) -> None:
    refused = start(project, "stages.join", MAR_NODES="2")
    said = refused.communicate()[1]
    assert refused.returncode == 1
    assert said.startswith("join: MAR_NODE: must be a number from 1 to 1 ")
