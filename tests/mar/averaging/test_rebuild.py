"""An average rebuilt from snapshots is the one that was tracked; nothing else is taken for it."""

from pathlib import Path

import pytest
import torch
from torch import nn

from mar.averaging.choice import OfDecay, OfWidth
from mar.averaging.power import decay, snapshot_steps
from mar.averaging.rebuild import fit_warning, rebuild
from mar.averaging.snapshots import Snapshot, read_index, write_index


STEPS = 600
WIDTHS = (0.05, 0.1)


class Walk:
    """Weights that drift and settle, as in a training, and averages of them."""

    def __init__(self, tracked: float, kept: float) -> None:
        rng = torch.Generator().manual_seed(0)
        goal, noise = torch.randn(50, generator=rng), torch.randn(STEPS, 50, generator=rng)
        self.averages = {width: torch.full((50,), 1e3) for width in (*WIDTHS, tracked)}
        self.ema, share = torch.zeros(50), 0.0
        self.states: list[dict[float, torch.Tensor]] = []
        for step in range(1, STEPS + 1):
            weights = goal * (1 - 0.99**step) + 0.3 * noise[step - 1]
            for width, average in self.averages.items():
                average.lerp_(weights, 1 - decay(width, step))
            self.ema = kept * self.ema + (1 - kept) * weights
            share = kept * share + 1 - kept
            self.states.append({width: a.clone() for width, a in self.averages.items()})
        self.ema = self.ema / share  # without the initial weights

    def write(self, folder: Path, count: int, dtype: str = "float32") -> None:
        found = [Snapshot(w, step) for step in snapshot_steps(STEPS, count) for w in WIDTHS]
        for snapshot in found:
            model = Model(self.states[snapshot.step - 1][snapshot.width])
            snapshot.write(folder, model, dtype)
        write_index(folder, found)


class Model(nn.Module):
    def __init__(self, weights: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weights.clone())


def rebuilt(folder: Path, choice: OfWidth | OfDecay) -> torch.Tensor:
    model = Model(torch.zeros(50))
    rebuild(model, folder, choice)
    return model.weight.detach()


def test_the_rebuilt_average_is_the_tracked_one(tmp_path: Path) -> None:
    walk = Walk(tracked=0.15, kept=0.97)
    walk.write(tmp_path, 30)
    tracked = walk.averages[0.15]
    found = rebuilt(tmp_path, OfWidth(width=0.15))
    off = float((found - tracked).norm())
    others = [float((walk.averages[width] - tracked).norm()) for width in WIDTHS]
    assert off < 0.02 * min(others)
    assert off < 2e-3 * float(tracked.norm())
    ema = rebuilt(tmp_path, OfDecay(decay=0.97))
    assert float((ema - walk.ema).norm()) < 5e-3 * float(walk.ema.norm())


def test_an_average_that_was_kept_comes_back_as_it_was(tmp_path: Path) -> None:
    walk = Walk(tracked=0.15, kept=0.9)
    walk.write(tmp_path / "float32", 10)
    walk.write(tmp_path / "float16", 10, "float16")
    for dtype, rtol in (("float32", 1e-5), ("float16", 1e-3)):
        found = rebuilt(tmp_path / dtype, OfWidth(width=0.1))
        torch.testing.assert_close(found, walk.averages[0.1], rtol=rtol, atol=1e-4)


def test_a_width_that_the_snapshots_cannot_give_is_warned_of(tmp_path: Path) -> None:
    Walk(tracked=0.15, kept=0.9).write(tmp_path, 4)
    model = Model(torch.zeros(50))
    wide, narrow = OfWidth(width=0.12), OfWidth(width=0.01)
    assert fit_warning(rebuild(model, tmp_path, wide), wide) is None
    warning = fit_warning(rebuild(model, tmp_path, narrow), narrow)
    assert warning is not None
    assert "{'width': 0.01}" in warning
    assert "off by 59 %" in warning


def test_snapshots_that_are_missing_damaged_or_of_another_model_are_refused(
    tmp_path: Path,
) -> None:
    choice = OfWidth(width=0.1)
    write_index(tmp_path / "none", [])
    assert read_index(tmp_path / "none") == []
    with pytest.raises(ValueError, match="must be 'ema' or 'raw', as the training kept no aver"):
        rebuild(Model(torch.zeros(50)), tmp_path / "none", choice)
    folder = tmp_path / "some"
    Walk(tracked=0.15, kept=0.9).write(folder, 2)
    with pytest.raises(ValueError, match=r"width-0.05-step-000000300.* weights of another model"):
        rebuild(Model(torch.zeros(51)), folder, choice)
    one, other = (folder / snapshot.file for snapshot in read_index(folder)[:2])
    one.replace(other)
    with pytest.raises(ValueError, match=r"width-0.05-step-000000300.safetensors is missing"):
        rebuild(Model(torch.zeros(50)), folder, choice)
    other.rename(one)
    other.write_bytes(one.read_bytes())
    with pytest.raises(ValueError, match=r"width-0.1-.* holds .*'width': 0.05.*expected"):
        rebuild(Model(torch.zeros(50)), folder, choice)
    one.write_bytes(one.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"width-0.05-.* is damaged"):
        rebuild(Model(torch.zeros(50)), folder, choice)
