"""The flow does what `dvc repro` does, says what happened, and never leaves a trainer behind."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect.concurrency import _leases
from prefect.concurrency._leases import maintain_concurrency_lease
from ruamel.yaml import YAML

from pipelines import child, graph
from pipelines.reproduce import reproduce
from pipelines.run_page import Outcome


ROOT = Path(__file__).parents[2]

DIAMOND = {"prepare": [], "train": ["prepare"], "reference": ["prepare"]}
DIAMOND["evaluate"] = ["train", "reference"]

# Every stage of the projects below notes that it started, and the key of the pipeline.
NOTE = """
import os, sys, time
from pathlib import Path
name = Path(__file__).stem
with open("started", "a") as file:
    file.write(f"{name} {os.environ.get('MAR_PIPELINE')}\\n")
"""
WRITE = "Path(name + '.out').write_text('done')\n"


@pytest.fixture
def project(empty: Path, tmp_path: Path) -> Path:
    """A copy of the empty project."""
    return Path(shutil.copytree(empty, tmp_path, dirs_exist_ok=True))


def write_stages(project: Path, upstream: dict[str, list[str]], **bodies: str) -> None:
    """Write a `dvc.yaml` and one script for each stage; the stages are listed backwards."""
    stages = {}
    for name in reversed(upstream):
        (project / f"{name}.py").write_text(NOTE + bodies.get(name, "") + WRITE)
        stages[name] = {
            "cmd": f"python {name}.py",
            "deps": [f"{name}.py", *(f"{stage}.out" for stage in upstream[name])],
            "outs": [f"{name}.out"],
        }
    (project / "dvc.yaml").write_text(json.dumps({"stages": stages}))


def started(project: Path) -> list[str]:
    """Return the names of the stages that started, in order."""
    return [line.split()[0] for line in (project / "started").read_text().splitlines()]


def keys(project: Path) -> list[str]:
    """Return the pipeline key that each started stage saw."""
    return [line.split()[1] for line in (project / "started").read_text().splitlines()]


def states(outcomes: list[Outcome]) -> dict[str, str]:
    """Return the state of each stage, in the order in which they were walked."""
    return {outcome.stage: outcome.state for outcome in outcomes}


def is_running(pid: int) -> bool:
    """Tell whether a process lives; one that only waits to be collected does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until_gone(pids: list[int], seconds: float) -> list[int]:
    """Return the processes that still live after a while."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(map(is_running, pids)):
        time.sleep(0.05)
    return [pid for pid in pids if is_running(pid)]


# Which stages, in which order


def test_graph_is_that_of_dvc(project: Path) -> None:
    write_stages(project, DIAMOND)
    read = graph.read(project)
    assert {stage: sorted(read[stage]) for stage in read} == {
        stage: sorted(upstream) for stage, upstream in DIAMOND.items()
    }


def test_inputs_come_first_whatever_the_order_of_the_file() -> None:
    backwards = {stage: DIAMOND[stage] for stage in reversed(DIAMOND)}
    order = graph.order(backwards)
    assert sorted(order) == sorted(DIAMOND)
    assert all(order.index(up) < order.index(stage) for stage in order for up in DIAMOND[stage])


def test_a_target_brings_what_it_depends_on_and_nothing_else() -> None:
    assert graph.order(DIAMOND, ["train"]) == ["prepare", "train"]


def test_a_mistyped_stage_gets_a_suggestion() -> None:
    with pytest.raises(ValueError, match="'trian' is not a stage; did you mean 'train'"):
        graph.order(DIAMOND, ["trian"])


def test_an_unreadable_project_is_an_error_in_the_words_of_dvc(project: Path) -> None:
    (project / "dvc.yaml").write_text("stages: {train: {}}\n")
    with pytest.raises(ValueError, match=r"dvc\.yaml.*validation failed"):
        graph.read(project)


# The flow


def test_stages_run_in_order_and_then_only_what_dvc_asks_for(project: Path, server: None) -> None:
    write_stages(project, {"prepare": [], "train": ["prepare"]})
    assert states(reproduce(project=project)) == {"prepare": "ran", "train": "ran"}
    assert started(project) == ["prepare", "train"]
    assert len(set(keys(project))) == 1

    yaml = YAML()
    lock = yaml.load(project / "dvc.lock")
    del lock["stages"]["train"]  # as after a change and its reversal
    yaml.dump(lock, project / "dvc.lock")
    again = {"prepare": "up to date", "train": "restored from cache"}
    assert states(reproduce(project=project)) == again
    assert len(started(project)) == 2

    reproduce(["prepare"], force=True, project=project)
    assert started(project)[2:] == ["prepare"]
    assert len(set(keys(project))) == 2


def test_a_killed_stage_gets_another_try_and_a_mistaken_one_ends_the_flow(
    project: Path, server: None
) -> None:
    write_stages(
        project,
        {"prepare": [], "train": ["prepare"], "sample": ["train"]},
        prepare="Path('killed').exists() or (Path('killed').touch(), os.kill(os.getpid(), 9))\n",
        train="sys.exit('training.lr must be float, got red')\n",
    )
    with pytest.raises(RuntimeError, match=r"'train' failed\n(.*\n)*.*must be float, got red"):
        reproduce(project=project)
    assert started(project) == ["prepare", "prepare", "train"]


def test_stages_run_for_an_account_whose_shell_refuses_to(
    project: Path, server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHELL", "/bin/false")
    write_stages(project, {"prepare": []})
    assert states(reproduce(project=project)) == {"prepare": "ran"}


def test_a_mistake_is_logged_once_in_the_words_of_the_stage(
    project: Path, server: None, caplog: pytest.LogCaptureFixture
) -> None:
    write_stages(project, {"train": []}, train="sys.exit('training.lr must be float, got red')\n")
    with pytest.raises(RuntimeError):
        reproduce(project=project)
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    said = [record for record in errors if "stage 'train' failed" in record.getMessage()]
    assert "training.lr must be float, got red" in said[0].getMessage()
    assert not any(record.exc_info for record in errors)
    assert len([record for record in said if "Finished in state" not in record.getMessage()]) == 1


def test_a_run_that_lost_its_place_says_so_in_a_line_and_the_next_one_continues(
    project: Path,
    server: None,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As after the sleep of a laptop: the server has let go of the lease that the run renews."""
    renew = _leases._renew_concurrency_lease_with_retries  # pyright: ignore[reportPrivateUsage]

    def renew_once_the_stage_runs(*arguments: Any) -> bool:
        while not (project / "started").exists():  # else it could be lost while the flow begins
            time.sleep(0.05)
        return renew(*arguments)

    monkeypatch.setattr(_leases, "_renew_concurrency_lease_with_retries", renew_once_the_stage_runs)
    wait = "Path('waited').exists() or (Path('waited').touch(), time.sleep(600))\n"
    write_stages(project, {"train": []}, train=wait)
    with (
        pytest.raises(RuntimeError, match="heard nothing of this run"),
        maintain_concurrency_lease(uuid4(), 300, raise_on_lease_renewal_failure=True),
    ):
        reproduce(project=project)
    errors = [record for record in caplog.records if record.levelno >= logging.WARNING]
    said = [record.getMessage() for record in errors if "Finished in" not in record.getMessage()]
    assert len(said) == 1
    assert len(said[0].splitlines()) == 1
    assert not any(record.exc_info for record in errors)
    assert states(reproduce(project=project)) == {"train": "ran"}


# The process of a stage


STUBBORN_TRAINER = """
import signal, subprocess
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
signal.signal(signal.SIGTERM, signal.SIG_IGN)
Path("pids").write_text(f"{os.getppid()} {os.getpid()} {worker.pid}")
print("training", flush=True)
time.sleep(600)
"""


# It saves where it is at the first signal, and a second one counts; that DVC has died is one.
SAVING_TRAINER = """
import ctypes, signal, subprocess
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
signals = []
signal.signal(signal.SIGTERM, lambda *_: signals.append(1))
print("training", flush=True)
while not signals:
    time.sleep(0.05)
time.sleep(2)
Path("saved").write_text(f"{len(signals)} {worker.poll()}")
worker.kill()
sys.exit(143)
"""


def run_until_training(project: Path, grace: float) -> None:
    """Run a stage, and interrupt it once it says that it is training."""

    def interrupt(line: str) -> None:
        if line == "training":
            signal.raise_signal(signal.SIGINT)

    command = [sys.executable, "-m", "dvc", "repro", "--single-item", "train"]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    # Programs that a shell starts in the background begin with this signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            child.run(command, project, environment, interrupt, grace)
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupt_leaves_no_process(project: Path) -> None:
    write_stages(project, {"train": []}, train=STUBBORN_TRAINER)
    run_until_training(project, grace=1.0)
    pids = [int(pid) for pid in (project / "pids").read_text().split()]
    assert len(pids) == 3
    assert wait_until_gone(pids, 2) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
def test_an_interrupted_trainer_gets_one_signal_its_workers_none_and_the_time_to_save(
    project: Path,
) -> None:
    # "exec", as in our dvc.yaml: no shell stays between DVC and the trainer.
    write_stages(project, {"train": []}, train=SAVING_TRAINER)
    yaml = project / "dvc.yaml"
    yaml.write_text(yaml.read_text().replace("python train.py", "exec python train.py"))
    run_until_training(project, grace=20.0)
    assert (project / "saved").read_text() == "1 None"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_a_killed_flow_takes_its_child_along(tmp_path: Path) -> None:
    sleep = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    parent = (
        "import os, pathlib, sys; from pipelines import child;"
        f"child.run([sys.executable, '-c', {sleep!r}], pathlib.Path(), os.environ, "
        "lambda line: print(line, flush=True))"
    )
    command = [sys.executable, "-c", parent]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert is_running(pid)
        process.kill()
    assert wait_until_gone([pid], 5) == []


def ignore(line: str) -> None:
    """Log nothing."""


def test_an_orphan_that_holds_the_output_is_ended(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys; sleep = [sys.executable, '-c', 'import time; time.sleep(600)'];"
        "print(subprocess.Popen(sleep).pid); sys.exit(3)"
    )
    status, tail = child.run([sys.executable, "-c", script], tmp_path, os.environ, ignore)
    assert status == 3
    assert wait_until_gone([int(tail[0])], 2) == []


def test_the_last_lines_and_the_status_come_back(tmp_path: Path) -> None:
    script = "import sys; [print(i) for i in range(50)]; sys.exit(3)"
    seen: list[str] = []
    status, tail = child.run([sys.executable, "-c", script], tmp_path, os.environ, seen.append)
    assert status == 3
    assert seen == [str(i) for i in range(50)]
    assert tail == seen[-child.TAIL_LINES :]


def test_a_progress_bar_is_one_line() -> None:
    chunks = [b"start\n\r 10%", b"\r 50%\r", b"\n\x1b[1mend\x1b[0m\r\n\n", b"last"]
    assert list(child.lines(chunks)) == ["start", " 50%", "end", "last"]


def test_a_bar_below_a_bar_is_no_line_of_its_own() -> None:
    below = [b"\n", b"\rinner 10%", b"\x1b[A", b"\n", b"\rinner 20%\x1b[A"]
    assert list(child.lines([b"\router 1%", *below, b"\router 2%\n"])) == ["outer 1%", "outer 2%"]


def test_a_long_progress_bar_is_shown_now_and_then() -> None:
    chunks = [b"\r 10%\r 20%", b"\r 30%", b"\n"]
    assert list(child.lines(chunks, progress_seconds=0.0)) == [" 20%", " 30%", " 30%"]
