"""A killed training continues from its checkpoint to the very weights of an undisturbed one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_project as tiny

from mar.atomic import digest
from stages import work


ROOT = Path(__file__).parents[2]
OUTPUTS = ("generator.safetensors", "ema.safetensors")


def start(project: Path, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "stages.train_generator"],
        cwd=project,
        # One thread, as in this process: sums over two are rounded otherwise.
        env={**os.environ, "MAR_CHECKPOINT_SECONDS": "1", "OMP_NUM_THREADS": "1", **environment},
        stderr=subprocess.DEVNULL,
    )


def wait_for_checkpoint(project: Path) -> None:
    deadline = time.monotonic() + 120
    while not list((project / "work/train_generator").glob("*/checkpoint.pt")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def long_training(project: Path, finished: Path) -> Path:
    """Return a project that is ready to train for some seconds."""
    shutil.copytree(finished / "out", project / "out")
    shutil.rmtree(project / "out/train_generator")
    params = tiny.tiny_params()
    params["training"]["steps"] = 250
    params["training"]["preview_steps"] = 250
    params["training"]["curve_steps"] = 50
    (project / "params.yaml").write_text(json.dumps(params))
    return project


def test_kill_9_and_resume_equals_an_undisturbed_run(long_training: Path) -> None:
    project = long_training
    killed = start(project)
    wait_for_checkpoint(project)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not (project / "out/train_generator/ema.safetensors").exists()
    assert start(project).wait() == 0
    resumed = [digest(project / "out/train_generator" / name) for name in OUTPUTS]
    curves = (project / "out/train_generator/curves.csv").read_text().splitlines()

    shutil.rmtree(project / "out/train_generator")
    tiny.run_stage("train_generator")
    undisturbed = [digest(project / "out/train_generator" / name) for name in OUTPUTS]
    assert resumed == undisturbed
    # The curves agree too, but for the speed, their last column.
    expected = (project / "out/train_generator/curves.csv").read_text().splitlines()
    assert [row.rpartition(",")[0] for row in curves] == [r.rpartition(",")[0] for r in expected]


def test_a_second_process_is_refused(long_training: Path) -> None:
    first = start(long_training)
    try:
        wait_for_checkpoint(long_training)
        with pytest.raises(ValueError, match=f"already running here as process {first.pid}"):
            tiny.run_stage("train_generator")
    finally:
        first.kill()
        first.wait()


def test_work_of_other_settings_is_not_continued(long_training: Path) -> None:
    inputs = work.input_digests("train_generator")
    before = work.fingerprint("train_generator", inputs)
    params = tiny.tiny_params()
    params["training"]["lr"] = 1.0
    (long_training / "params.yaml").write_text(json.dumps(params))
    assert work.fingerprint("train_generator", inputs) != before

    other = {**inputs, "mar/training.py": "edited"}
    assert work.fingerprint("train_generator", other) != work.fingerprint("train_generator", inputs)
