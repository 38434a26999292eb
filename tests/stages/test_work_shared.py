"""Any number of processes make the same samples, statistics and scores, to the last bit."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import in_processes
from stages_in_processes import refusal, run
from tiny_project import ROOT, tiny_params


STAGES = ("reference", "reconstruct", "sample", "evaluate")
SECONDS = 60.0  # until a process that does not end is a failure


@pytest.fixture(scope="module")
def outputs(
    finished: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], dict[str, bytes]]:
    """Return what runs the stages in some number of processes and returns what they write."""

    def run_stages(num: int) -> dict[str, bytes]:
        folder = tmp_path_factory.mktemp(f"processes-{num}")
        copy(finished, folder / "project")
        in_processes(run, num, folder / "group", folder / "project", STAGES)
        return written(folder / "project")

    return run_stages


@pytest.fixture(scope="module")
def alone(outputs: Callable[[int], dict[str, bytes]]) -> dict[str, bytes]:
    return outputs(1)


def copy(project: Path, to: Path) -> None:
    """Copy a project without what the stages make."""
    shutil.copytree(project, to, symlinks=True)
    for name in STAGES:
        shutil.rmtree(to / "out" / name)
    shutil.rmtree(to / "work")


def written(project: Path) -> dict[str, bytes]:
    files = [file for name in STAGES for file in (project / "out" / name).rglob("*")]
    return {str(file.relative_to(project)): file.read_bytes() for file in files if file.is_file()}


@pytest.mark.parametrize("num", [2, 4])
def test_outputs_are_the_same_for_any_number_of_processes(
    num: int, outputs: Callable[[int], dict[str, bytes]], alone: dict[str, bytes]
) -> None:
    found = outputs(num)
    assert found.keys() == alone.keys()
    assert [name for name in found if found[name] != alone[name]] == []
    assert {
        "out/evaluate/metrics.json",
        "out/evaluate/scores.csv",
        "out/reconstruct/metrics.json",
        "out/reference/extractor/statistics.safetensors",
        "out/sample/samples/00002.arrow",
    } <= found.keys()


def test_what_one_process_refuses_all_refuse(finished: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(finished, project, symlinks=True)
    shard = project / "out/sample/samples/00001.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    first, second = in_processes(refusal, 2, tmp_path / "group", project, "evaluate")
    assert first[0] == second[0]
    assert first[1] == Path("out/sample/samples/00001.arrow")  # which the message to people needs


def test_after_one_process_was_killed_the_same_command_continues(
    finished: Path, tmp_path: Path
) -> None:
    params = tiny_params()
    params["sample"] |= {"num_images": 60, "shard_images": 2}
    projects = [tmp_path / name for name in ("whole", "killed")]
    for project in projects:
        copy(finished, project)
        (project / "params.yaml").write_text(json.dumps(params))
    whole, killed = projects
    in_processes(run, 1, tmp_path / "one", whole, ["sample"])

    made = killed / "work/sample/samples"
    group = [start(killed, tmp_path / "rendezvous", rank) for rank in range(2)]
    try:
        wait_for(lambda: len(list(made.glob("*.arrow"))) >= 4)
        group[1].kill()
        assert group[0].wait(timeout=SECONDS) != 0  # it does not wait for ever
    finally:
        for process in group:
            process.kill()
            process.wait()
    assert not (killed / "out/sample").exists()
    before = {path.name: path.stat().st_mtime_ns for path in made.glob("*.arrow")}
    assert 4 <= len(before) < 30

    in_processes(run, 4, tmp_path / "four", killed, ["sample"])
    assert written(killed) == written(whole)
    after = {name: (killed / "out/sample/samples" / name).stat().st_mtime_ns for name in before}
    assert after == before  # they were not made again


def start(project: Path, rendezvous: Path, rank: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [
            sys.executable,
            str(Path(__file__).with_name("stages_in_processes.py")),
            *map(str, (project, "sample", rendezvous, rank, 2)),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


@pytest.mark.slow
def test_a_stage_as_a_program_makes_the_same(
    finished: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    project = tmp_path / "project"
    copy(finished, project)
    own = {"MAR_PROCESSES": "2", "MAR_WORKERS": "1", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-m", "stages.sample"],
        cwd=project,
        env={**os.environ, **own, "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        timeout=5 * SECONDS,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    expected = {name: value for name, value in alone.items() if "out/sample" in name}
    found = written(project)
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
