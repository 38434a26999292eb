"""Any number of processes take the same steps, and go on from one another's checkpoints."""

import shutil
from pathlib import Path

import pytest
import torch
from processes import in_processes
from torch import nn
from training_in_processes import Outcome, run, write_cache

from mar.distributed import Parallel
from mar.files.seal import DamagedFileError
from mar.training.checkpoints import Checkpoints


STEPS = 4


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """Return the folder of a training in one process, stopped after two steps, and the whole."""
    folder = tmp_path_factory.mktemp("alone")
    write_cache(folder)
    first = run(folder, "ddp", STEPS // 2)
    shutil.copytree(folder, folder.parent / "half")
    rest = run(folder, "ddp", STEPS)
    assert first is not None
    assert rest is not None
    losses, norms = first.losses + rest.losses, first.norms + rest.norms
    return folder.parent / "half", Outcome(losses, norms, rest.model, rest.ema, rest.average)


def check(outcome: Outcome, expected: Outcome, first: int = 0) -> None:
    assert outcome.losses == pytest.approx(expected.losses[first:], rel=1e-5)
    assert outcome.norms == pytest.approx(expected.norms[first:], rel=1e-4)
    for found, wanted in zip(outcome[2:], expected[2:], strict=True):
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("num", [2, 4])
def test_several_processes_train_as_one_does(
    num: int, parallel: Parallel, alone: tuple[Path, Outcome], tmp_path: Path
) -> None:
    write_cache(tmp_path)
    outcome, *others = in_processes(run, num, tmp_path / "group", tmp_path, parallel, STEPS)
    assert others == [None] * (num - 1)
    check(outcome, alone[1])


@pytest.mark.parametrize(("num", "parallel"), [(1, "ddp"), (4, "fsdp"), (2, "ddp")])
@pytest.mark.parametrize("saved_by", ["one", "two"])
def test_a_checkpoint_is_continued_by_any_number_of_processes(
    num: int, parallel: Parallel, saved_by: str, alone: tuple[Path, Outcome], tmp_path: Path
) -> None:
    half, whole = alone
    folder = tmp_path / "training"
    if saved_by == "one":
        shutil.copytree(half, folder)
    else:
        write_cache(folder)
        in_processes(run, 2, tmp_path / "first", folder, "fsdp", STEPS // 2)
    outcome, *_ = in_processes(run, num, tmp_path / "group", folder, parallel, STEPS)
    check(outcome, whole, first=STEPS // 2)


def load_newest(folder: Path) -> tuple[str, bool]:
    """Return what a process is told of a damaged checkpoint, and whether it can go on from it."""
    checkpoints = Checkpoints(folder / "checkpoints")
    model = nn.Linear(2, 2)
    newest, before = checkpoints.paths()
    try:
        checkpoints.load(newest, {"model": model})
    except DamagedFileError as error:
        checkpoints.remove(newest)
        checkpoints.load(before, {"model": model})
        return f"{error.path.name} {checkpoints.paths() == [before]}", True
    return "", False


@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_all_processes_go_back_past_a_damaged_checkpoint(damage: str, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (1, 2):
        checkpoints.save({"model": nn.Linear(2, 2)}, step, [])
        checkpoints.wait()
    description = checkpoints.paths()[0] / "checkpoint.json"
    if damage == "flip":
        description.write_bytes(description.read_bytes().replace(b"step", b"stop", 1))
    else:
        description.unlink()
    outcomes = in_processes(load_newest, 2, tmp_path / "group", tmp_path)
    assert outcomes == [("checkpoint.json True", True)] * 2
