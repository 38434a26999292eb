"""What ends a training: divergence, after it went back once, and a disk without room."""

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import tiny_project as tiny

from mar.training.step import DivergedError
from stages import train_loop


@pytest.fixture
def hopeless(project: Path, finished: Path) -> Path:
    """Return a project whose generator is trained with an absurd learning rate."""
    shutil.copytree(finished / "out", project / "out")
    shutil.rmtree(project / "out/train_generator")
    params = tiny.tiny_params()
    params["training"] |= {"lr": 1e30, "steps": 60, "curve_steps": 5, "preview_steps": 60}
    (project / "params.yaml").write_text(json.dumps(params))
    return project


def test_a_diverged_training_names_step_and_samples(hopeless: Path) -> None:
    with pytest.raises(
        DivergedError, match=r"training diverged at step \d+: loss is .*; with digits/.*, digits/"
    ):
        tiny.run_stage("train_generator")
    (dump,) = hopeless.glob("work/train_generator/*/diverged.json")
    told = json.loads(dump.read_text())
    assert told["step"] >= 10
    assert len(told["samples"]) == 8  # all of the batch
    assert not (hopeless / "out/train_generator/ema.safetensors").exists()


def test_it_goes_back_to_the_last_good_checkpoint_once(
    hopeless: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_loop._Interval, "due", lambda interval: True)
    with pytest.raises(DivergedError, match="training diverged at step"):
        tiny.run_stage("train_generator")
    said = capfd.readouterr().err
    assert said.count("train_generator: training diverged at step ") == 1
    assert "/checkpoints/step-000000001, once\n" in said


def test_a_disk_without_room_for_checkpoints_is_refused_before_the_first_step(
    hopeless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 10**5, 10**5))
    with pytest.raises(ValueError, match=r"no room for the checkpoints: 3 checkpoints x [\d.]+ MB"):
        tiny.run_stage("train_generator")
    assert not list(hopeless.glob("work/train_generator/*/checkpoints/step-*"))
