"""A checkpoint is there as a whole or not at all, and a damaged one is recognised."""

import random
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mar.files.seal import DamagedFileError
from mar.training.checkpoints import Checkpoints, History


CURVES: History = [{"step": 1, "loss": 2.5}]


def new_parts(seed: int = 0) -> dict[str, nn.Module]:
    torch.manual_seed(seed)
    return {"model": nn.Linear(5, 4), "ema": nn.Linear(5, 4)}


def save(checkpoints: Checkpoints, parts: dict[str, nn.Module], step: int) -> Path:
    checkpoints.save(parts, step, CURVES)
    checkpoints.wait()
    return checkpoints.paths()[0]


def state(parts: dict[str, nn.Module]) -> list[Tensor]:
    return [value.clone() for part in parts.values() for value in part.state_dict().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(map(torch.equal, one, other))


def test_a_checkpoint_holds_what_the_state_was_when_it_was_saved(tmp_path: Path) -> None:
    checkpoints, parts, other = Checkpoints(tmp_path), new_parts(), new_parts(1)
    before = state(parts)
    checkpoints.save(parts, 7, CURVES)
    for part in parts.values():  # the training goes on while it is written
        for parameter in part.parameters():
            nn.init.zeros_(parameter)
    checkpoints.wait()
    (path,) = checkpoints.paths()
    loaded = checkpoints.load(path, other)
    assert (loaded.path, loaded.step, loaded.history) == (path, 7, CURVES)
    assert same(state(other), before)


def test_the_last_ones_are_kept_and_remains_are_removed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (3, 20, 100):
        save(checkpoints, new_parts(), step)
    assert [path.name for path in checkpoints.paths()] == ["step-000000100", "step-000000020"]
    remains = tmp_path / "step-000000120.partial"
    shutil.copytree(checkpoints.paths()[0], remains)
    Checkpoints(tmp_path)
    assert not remains.exists()


def test_damage_anywhere_is_recognised_and_nothing_is_loaded(tmp_path: Path) -> None:
    checkpoints, other = Checkpoints(tmp_path), new_parts(1)
    path, before = save(checkpoints, new_parts(), 1), state(other)
    draw = random.Random(0)
    for file in sorted(path.iterdir()):
        content = file.read_bytes()
        for _ in range(25):
            damaged = bytearray(content)
            damaged[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            file.write_bytes(damaged)
            with pytest.raises(
                DamagedFileError, match=rf"{file.name} (is damaged|holds no digest)"
            ):
                checkpoints.load(path, other)
        for length in (0, draw.randrange(len(content)), len(content) - 1):
            file.write_bytes(content[:length])
            with pytest.raises(DamagedFileError, match=file.name):
                checkpoints.load(path, other)
        file.unlink()
        with pytest.raises(
            DamagedFileError, match=rf"{file.name} (is missing|cannot be read: No such)"
        ):
            checkpoints.load(path, other)
        assert same(state(other), before)
        file.write_bytes(content)
    checkpoints.load(path, other)
    assert not same(state(other), before)


def test_a_full_disk_ends_the_training_and_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    checkpoints, parts = Checkpoints(tmp_path), new_parts()
    path, before = save(checkpoints, parts, 1), state(parts)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        checkpoints.save(parts, 2, CURVES)
        with pytest.raises(OSError, match=r"step-000000002.* cannot be written: its disk is full"):
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert checkpoints.paths() == [path]
    other = new_parts(1)
    checkpoints.load(path, other)
    assert same(state(other), before)
