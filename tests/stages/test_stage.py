"""A stage ends cleanly whatever happens to it or around it."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_project as tiny
import torch
from ruamel.yaml import YAML

from mar.files.atomic import digest
from stages import runner, work
from stages.stage import Stage, read_count
from stages.tracking import Run


def test_mlflow_away_is_said_once_and_nothing_breaks(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # the discard port
    monkeypatch.setenv("MAR_PIPELINE", "away")
    tiny.run_stage("prepare")
    error = capfd.readouterr().err
    assert error.count("MLflow is away") == 1
    metrics = json.loads((project / "out/prepare/metrics.json").read_text())
    assert metrics["num_train"] == 1438
    record = (project / "work/tracking/prepare.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in record]
    assert {"start", "params", "metrics", "finish"} <= {event["event"] for event in events}
    assert events[-1]["status"] == "FINISHED"


def test_a_picture_that_cannot_be_drawn_ends_no_training(
    project: Path, finished: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished / "out", project / "out")
    shutil.rmtree(project / "out/train_generator")
    (project / "out/prepare/classes.json").unlink()
    tiny.run_stage("train_generator")
    assert "train_generator: no picture: " in capfd.readouterr().err
    assert digest(project / "out/train_generator/ema.safetensors") == digest(
        finished / "out/train_generator/ema.safetensors"
    )


def test_what_changes_while_a_stage_runs_is_not_recorded(project: Path) -> None:
    """DVC would take the edit for what the outputs were made of."""

    def edit(running: Stage) -> None:
        params = tiny.tiny_params()
        params["data"]["seed"] = 7
        (running.work / "checkpoint.pt").write_text("some steps")
        (project / "params.yaml").write_text(json.dumps(params))

    with pytest.raises(ValueError, match=r"^section data of params\.yaml changed while the stage"):
        runner.execute("prepare", edit)
    (unfinished,) = (project / "work/prepare").glob("*/")
    (project / "params.yaml").write_text(json.dumps(tiny.tiny_params()))
    runner.execute("prepare", lambda running: None)
    assert not unfinished.exists()  # it went on from there


def test_a_stage_that_fails_at_once_leaves_no_work(project: Path) -> None:
    def refuse(running: Stage) -> None:
        raise ValueError("data.path: photographs does not exist")

    with pytest.raises(ValueError, match="does not exist"):
        runner.execute("prepare", refuse)
    assert list((project / "work/prepare").glob("*/")) == []

    def begin(running: Stage) -> None:
        (running.work / "checkpoint.pt").write_text("some steps")
        raise ValueError("training diverged")

    with pytest.raises(ValueError, match="diverged"):
        runner.execute("prepare", begin)
    assert len(list((project / "work/prepare").glob("*/checkpoint.pt"))) == 1


def test_an_interrupt_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt(name: str, main: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "execute", interrupt)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            runner.start("prepare", lambda running: None)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 130
    assert "interrupted; the same command goes on" in capfd.readouterr().err


def test_memory_that_does_not_suffice_is_said(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def exhaust(name: str, main: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(runner, "execute", exhaust)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit):
            runner.start("train_generator", lambda running: None)
    finally:
        signal.signal(signal.SIGTERM, before)
    said = capfd.readouterr().err
    assert "CUDA out of memory." in said
    assert "MAR_MICRO_BATCH" in said


def test_a_mistake_is_one_readable_line(project: Path) -> None:
    (project / "params.yaml").write_text("data: {}\n")
    process = subprocess.run(
        [sys.executable, "-m", "stages.prepare"],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 1
    assert process.stderr.startswith("prepare: params.yaml: ")
    assert "Traceback" not in process.stderr


def test_classes_that_the_data_lack_are_refused_by_the_first_stage_that_can(
    project: Path,
) -> None:
    params = json.loads((project / "params.yaml").read_text())
    params["sample"]["labels"] = [3, 10]
    (project / "params.yaml").write_text(json.dumps(params))
    tiny.run_stage("prepare")
    with pytest.raises(ValueError, match=r"sample\.labels: 10 is not a class, they are 0 to 9"):
        tiny.run_stage("train_tokenizer")
    assert not (project / "out/train_tokenizer").exists()
    tiny.run_stage("prepare")  # other classes may come of it


def test_a_doubtful_setting_is_said_once(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    params = json.loads((project / "params.yaml").read_text())
    params["data"]["image_size"] = 16
    params["generator"]["patch_size"] = 4  # tokens of 32 channels, for a denoiser 16 wide
    params["sample"]["num_steps"] = 4
    for seed, times in ((0, 1), (0, 0), (1, 1)):
        params["data"]["seed"] = seed
        (project / "params.yaml").write_text(json.dumps(params))
        tiny.run_stage("prepare")
        doubt = (
            "params.yaml: generator.head.size: a denoiser of width 16 is narrow for tokens of 32"
        )
        assert capfd.readouterr().err.count(doubt) == times


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_a_stage_ends_when_dvc_dies(shell: str, tmp_path: Path) -> None:
    """DVC runs commands through a shell, which must not stay between the two."""
    if sys.platform != "linux":
        pytest.skip("only Linux tells a process that its parent died")
    if not Path(shell).exists():
        pytest.skip(f"there is no {shell}")
    command = declared_command("prepare").replace("stages.prepare", "waiting")
    (tmp_path / "dvc.yaml").write_text(f"stages: {{waiting: {{cmd: {command}}}}}")
    (tmp_path / "waiting.py").write_text(
        "import os, time, pathlib; from stages import runner; runner._end_with_parent(); "
        "pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(60)"
    )
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {"PYTHONPATH": str(tiny.ROOT), "SHELL": shell, "PATH": path}
    subprocess.run(
        [sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=tmp_path, check=True
    )
    dvc = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", "-q"],
        cwd=tmp_path,
        env={**os.environ, **environment},
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "pid").exists():
        assert dvc.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    pid = int((tmp_path / "pid").read_text())
    dvc.kill()
    dvc.wait()
    while state_of(pid) != "Z":
        assert time.monotonic() < deadline - 60
        time.sleep(0.05)


def test_a_stage_whose_dvc_has_died_does_not_begin() -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux tells a process that its parent died")
    code = "from stages import runner; runner._end_with_parent()"
    command = f"{shlex.join([sys.executable, '-c', code])}; exit $?"
    for parent, status in [("dvc", 0), ("python3", 0), ("init", 128 + signal.SIGTERM)]:
        found = subprocess.run(
            [parent, "-c", command], executable="/bin/sh", cwd=tiny.ROOT, check=False
        )
        assert found.returncode == status, parent


def declared_command(name: str) -> str:
    return YAML(typ="safe").load((tiny.ROOT / "dvc.yaml").read_text())["stages"][name]["cmd"]


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


@pytest.mark.parametrize("text", ["-1", "many", "1.5"])
def test_a_bad_count_in_the_environment_is_named(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAR_WORKERS", text)
    with pytest.raises(
        ValueError, match=f"MAR_WORKERS: must be a whole number, 0 or more, got '{text}'"
    ):
        read_count("MAR_WORKERS", 1, least=0)


@pytest.mark.parametrize(("text", "chosen"), [("", None), ("0", False), ("1", True)])
def test_who_does_not_say_where_latents_are_held_leaves_it_to_the_device(
    text: str, chosen: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAR_CACHE_ON_DEVICE", text)
    stage = Stage("train_generator", tmp_path, tmp_path, torch.device("cpu"), Run("train"))
    assert stage.cache_on_device is chosen


def test_an_unknown_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gpu", "meta"):  # the latter is there, and computes nothing
        monkeypatch.setenv("MAR_DEVICE", name)
        with pytest.raises(ValueError, match=f"MAR_DEVICE: cannot use '{name}'"):
            runner.choose_device()
    monkeypatch.setenv("MAR_DEVICE", "cpu")
    assert runner.choose_device() == torch.device("cpu")


def test_an_unknown_stage_gets_a_suggestion(project: Path) -> None:
    with pytest.raises(ValueError, match=r"trian_generator is not a stage; did you mean"):
        work.declaration("trian_generator")


@pytest.mark.parametrize(("device", "usual"), [("cuda", True), ("cpu", False), ("mps", False)])
def test_blocks_are_compiled_on_cuda_unless_the_environment_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str, usual: bool
) -> None:
    record: Any = None  # nothing is recorded
    stage = Stage("x", tmp_path, tmp_path, torch.device(device), record)
    monkeypatch.delenv("MAR_COMPILE", raising=False)
    assert stage.compiles == usual
    for text, on in (("0", False), ("1", True)):
        monkeypatch.setenv("MAR_COMPILE", text)
        assert stage.compiles == on
