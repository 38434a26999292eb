"""A killed training continues from its checkpoint to the very weights of an undisturbed one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_project as tiny

from mar import activation_checkpointing as checkpointing
from mar.files.atomic import digest
from mar.model.mar import MAR
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


def saved_steps(project: Path) -> list[int]:
    """Return the steps of the checkpoints of the generator's training."""
    found = (project / "work/train_generator").glob("*/checkpoints/step-*[0-9]")
    return sorted(int(path.name.removeprefix("step-")) for path in found)


def wait_for_checkpoint(project: Path) -> None:
    deadline = time.monotonic() + 120
    while not saved_steps(project):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def results(project: Path) -> dict[str, str]:
    """Return what the training came to, the averages of all snapshots included."""
    folder = project / "out/train_generator"
    averages = sorted((folder / "averages").iterdir())
    assert len(averages) == 1 + 2 * 16
    return {path.name: digest(path) for path in (*(folder / name for name in OUTPUTS), *averages)}


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
    step = saved_steps(project)[-1]
    assert start(project).wait() == 0
    assert first_step_after_the_last_start(project) > step
    resumed = results(project)
    curves = (project / "out/train_generator/curves.csv").read_text()

    shutil.rmtree(project / "out/train_generator")
    tiny.run_stage("train_generator")
    assert results(project) == resumed
    assert (project / "out/train_generator/curves.csv").read_text() == curves


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_where_the_training_is(long_training: Path, number: int) -> None:
    project = long_training
    params = json.loads((project / "params.yaml").read_text())
    params["training"] |= {"steps": 100_000, "curve_steps": 10}
    (project / "params.yaml").write_text(json.dumps(params))
    # No checkpoint is due before the signal comes.
    process = start(project, MAR_CHECKPOINT_SECONDS="1000")
    record = project / "work/tracking/train_generator.jsonl"
    deadline = time.monotonic() + 120
    while not record.is_file() or '"step": 30' not in record.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait() == 128 + number
    assert saved_steps(project)[-1] >= 30


def test_activations_that_are_computed_again_give_the_same_weights(
    project: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished / "out", project / "out")
    monkeypatch.setenv("MAR_CHECKPOINTING", "1")
    calls: list[object] = []
    recompute = checkpointing.checkpoint

    def count(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return recompute(*arguments, **options)

    monkeypatch.setattr(checkpointing, "checkpoint", count)
    tiny.run_stage("train_generator")
    assert calls
    for name in OUTPUTS:
        assert digest(project / "out/train_generator" / name) == digest(
            finished / "out/train_generator" / name
        )


def first_step_after_the_last_start(project: Path) -> int:
    record = (project / "work/tracking/train_generator.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in record]
    last = max(index for index, event in enumerate(events) if event["event"] == "start")
    return next(event["step"] for event in events[last:] if event["step"])


def test_a_second_process_is_refused(
    long_training: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(work, "PATIENCE", 0.5)
    params = json.loads((long_training / "params.yaml").read_text())
    params["training"]["steps"] = 100_000
    (long_training / "params.yaml").write_text(json.dumps(params))
    first = start(long_training)
    try:
        wait_for_checkpoint(long_training)
        with pytest.raises(ValueError, match=f"already running here as process {first.pid}"):
            tiny.run_stage("train_generator")
        assert f"waiting for process {first.pid} to end" in capfd.readouterr().err
    finally:
        first.kill()
        first.wait()


def test_what_a_killed_process_leaves_for_a_moment_is_waited_for(project: Path) -> None:
    """Its children hold the lock until they see that it is gone."""
    code = (
        "import os, time; from stages import work\n"
        "with work.exclusive('prepare'):\n"
        "    if os.fork() == 0: time.sleep(1); os._exit(0)\n"
        "    print('held', flush=True); os.kill(os.getpid(), 9)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=project, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    process.wait()
    with work.exclusive("prepare"):
        pass
    process.stdout.close()


@pytest.mark.parametrize("stage", ["encode", "train_generator", "sample"])
def test_what_dvc_has_not_recorded_is_taken_from_the_work_folder(
    stage: str, project: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be killed while it reads the outputs of a stage that has finished."""
    shutil.copytree(finished / "out", project / "out")
    monkeypatch.setenv("DVC_STAGE", stage)
    tiny.run_stage(stage)
    (folder,) = (project / "work" / stage).glob("*/")
    made = digests(project / "out" / stage)
    shutil.rmtree(project / "out" / stage)  # as DVC does before it runs a stage again

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("it was made already")

    monkeypatch.setattr(MAR, "forward", refuse)
    monkeypatch.setattr("stages.sample.generate_latents", refuse)
    monkeypatch.setattr("stages.encode.encode_images", refuse)
    monkeypatch.setattr("stages.encode.write_latents", refuse)
    tiny.run_stage(stage)
    assert digests(project / "out" / stage) == made

    for settings, kept in [({}, True), (work.sections(stage), False)]:
        entry = {"cmd": "recorded", "params": {"params.yaml": settings}}
        lock = {"schema": "2.0", "stages": {stage: entry}}
        (project / "dvc.lock").write_text(json.dumps(lock))
        tiny.run_stage("evaluate")
        assert folder.exists() == kept


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_work_of_other_settings_is_not_continued(long_training: Path) -> None:
    inputs = work.input_digests("train_generator")
    before = work.fingerprint("train_generator", inputs)
    params = tiny.tiny_params()
    params["training"]["lr"] = 1.0
    (long_training / "params.yaml").write_text(json.dumps(params))
    assert work.fingerprint("train_generator", inputs) != before

    other = {**inputs, "mar/training/generator.py": "edited"}
    assert work.fingerprint("train_generator", other) != work.fingerprint("train_generator", inputs)


def test_an_input_that_dvc_did_not_see_change_counts_as_changed(project: Path) -> None:
    file = project / "out/train_tokenizer/tokenizer.safetensors"
    file.parent.mkdir(parents=True)
    file.write_text("recorded")
    out = {"path": str(file.relative_to(project)), "md5": "0" * 32}
    lock = {"schema": "2.0", "stages": {"train_tokenizer": {"cmd": "", "outs": [out]}}}
    (project / "dvc.lock").write_text(json.dumps(lock))
    (project / "out/prepare").mkdir()
    (project / "out/prepare/manifest.parquet").write_text("")
    before = work.input_digests("encode")
    file.write_text("another one")
    assert work.input_digests("encode") != before


def test_a_finished_stage_leaves_the_work_of_other_settings(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = project / "work/prepare/0123456789abcdef"
    other.mkdir(parents=True)
    (other / "checkpoint.pt").write_text("three days")
    tiny.run_stage("prepare")
    assert (other / "checkpoint.pt").read_text() == "three days"
    assert [path.name for path in (project / "work/prepare").glob("*/")] == [other.name]
    assert f"work of other settings is kept: {other.relative_to(project)}" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("stage", "folder"), [("encode", "out/encode/latents"), ("sample", "out/sample/samples")]
)
def test_shards_that_were_written_are_not_made_again(
    stage: str, folder: str, project: Path, finished: Path
) -> None:
    shutil.copytree(finished / "out", project / "out")
    made = {path.name: digest(path) for path in (project / folder).iterdir()}
    kept, *missing = sorted(made)
    assert missing
    work_folder = work.open_folder(stage, work.input_digests(stage)) / Path(folder).name
    shutil.copytree(project / folder, work_folder)
    for name in missing:
        (work_folder / name).unlink()
    before = (work_folder / kept).stat().st_mtime_ns
    shutil.rmtree(project / f"out/{stage}")
    tiny.run_stage(stage)
    assert (project / folder / kept).stat().st_mtime_ns == before
    assert {path.name: digest(path) for path in (project / folder).iterdir()} == made
