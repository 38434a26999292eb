"""The discrepancy equals its definition over pairs, and is 0 on average for one distribution."""

import math

import pytest
import torch
from torch import Tensor

from mar.evaluation import mmd as module
from mar.evaluation.mmd import SCALE, mmd


def normal(count: int, seed: int) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


def test_it_equals_its_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 4)  # so that several parts are added up
    found, real = normal(9, 0) + 1, normal(11, 1)
    distances = sorted(math.dist(a, b) for i, a in enumerate(real) for b in real[:i])
    width = distances[(len(distances) - 1) // 2]

    def kernel(a: Tensor, b: Tensor) -> float:
        return math.exp(-(math.dist(a, b) ** 2) / (2 * width**2))

    def within(x: Tensor) -> float:
        pairs = [kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
        return sum(pairs) / len(pairs)

    across = sum(kernel(a, b) for a in found for b in real) / 99
    expected = within(found) + within(real) - 2 * across
    assert mmd(found, real, seed=0).value == pytest.approx(SCALE * expected, rel=1e-6)


def test_few_images_of_one_distribution_are_at_no_distance_on_average() -> None:
    same = [mmd(normal(16, seed), normal(200, 1000), seed=0).value for seed in range(40)]
    other = [mmd(normal(16, seed) + 1, normal(200, 1000), seed=0).value for seed in range(40)]
    mean, spread = sum(same) / 40, torch.tensor(same).std()
    assert abs(mean) < 4 * spread / 40**0.5
    assert min(other) > max(same)


def leave_one_out(found: Tensor, real: Tensor) -> float:
    """Return the jackknife's spread, each of its values computed anew."""
    values = [
        mmd(torch.cat([found[:i], found[i + 1 :]]), real, seed=0).value for i in range(len(found))
    ]
    n, mean = len(values), sum(values) / len(values)
    return math.sqrt((n - 1) / n * sum((value - mean) ** 2 for value in values))


def test_its_spread_is_that_of_leaving_one_image_out() -> None:
    found, real = normal(9, 0) + 1, normal(11, 1)
    expected = leave_one_out(found, real)
    assert mmd(found, real, seed=0).spread == pytest.approx(expected, rel=1e-6)
    assert mmd(found[:2], real, seed=0).spread is None


@pytest.mark.parametrize(("shift", "most"), [(0.0, 2.0), (0.5, 1.2), (2.0, 1.2)])
def test_its_spread_is_that_of_other_samples_or_a_little_more(shift: float, most: float) -> None:
    """Of one distribution it is too large, as the jackknife's is of such an estimate."""
    real = normal(300, 1000)
    found = [mmd(normal(60, seed) + shift, real, seed=0) for seed in range(150)]
    spread = float(torch.tensor([each.value for each in found]).std())
    told = sum(each.spread or 0.0 for each in found) / len(found)
    assert 0.85 * spread < told < most * spread


def test_images_that_are_all_the_same_are_at_no_distance_from_themselves() -> None:
    assert mmd(torch.ones(5, 3), torch.ones(4, 3), seed=0) == (0.0, 0.0)


def test_of_more_images_than_real_ones_all_classes_are_compared() -> None:
    """Samples cycle through the classes, so that every fifth is of two of ten."""
    labels = torch.arange(2000) % 10
    found = normal(2000, 0) / 10 + labels[:, None]
    real = normal(400, 1) / 10 + torch.arange(400)[:, None] // 40
    assert abs(mmd(found, real, seed=0).value) < 10
    assert mmd(found[::5], real, seed=0).value > 50
