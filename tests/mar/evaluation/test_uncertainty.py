"""Spreads are those of repeated samples, and the extrapolated distance has lost its bias."""

import pytest
import torch
from torch import Tensor

from mar.evaluation.statistics import Statistics, frechet_distance, measure_features
from mar.evaluation.uncertainty import (
    Extrapolation,
    bootstrap_spread,
    distance_at_infinity,
    infinity_warning,
    share_spread,
)


WIDTH = 8
REAL = Statistics(torch.zeros(WIDTH).double(), torch.eye(WIDTH).double(), None)


def sample(count: int, seed: int, *, shift: float = 0.0) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed)) + shift


def distance(features: Tensor) -> float:
    return frechet_distance(measure_features(features), REAL)


def at_infinity(
    features: Tensor, points: int, seed: int, *, with_spread: bool = True
) -> Extrapolation:
    return distance_at_infinity(features, REAL, points=points, seed=seed, with_spread=with_spread)


def test_the_bootstraps_spread_is_that_of_new_samples() -> None:
    features = sample(400, 0, shift=0.3)
    found = bootstrap_spread(lambda some: distance(features[some]), 400, resamples=60, seed=0)
    again = torch.tensor([distance(sample(400, seed, shift=0.3)) for seed in range(1, 61)])
    assert found == pytest.approx(float(again.std()), rel=0.5)


def test_the_bootstrap_depends_on_its_seed_alone() -> None:
    features = sample(50, 0)
    first, second, other = (
        bootstrap_spread(lambda some: float(features[some].mean()), 50, resamples=5, seed=seed)
        for seed in (1, 1, 2)
    )
    assert first == second != other


def test_the_spread_of_a_share_is_that_of_draws() -> None:
    draws = torch.rand(5000, 200, generator=torch.Generator().manual_seed(0)) < 0.3
    shares = draws.double().mean(dim=1)
    assert share_spread(0.3, 200) == pytest.approx(float(shares.std()), rel=0.05)
    assert share_spread(1.0, 200) == 0.0


def test_infinitely_many_images_of_the_references_own_distribution_are_at_no_distance() -> None:
    """The mean over samples: that of N images is about WIDTH * (WIDTH + 4) / (4 N) too large."""
    plain = [distance(sample(300, seed)) for seed in range(20)]
    infinite = [
        at_infinity(sample(300, seed), 10, 0, with_spread=False).value for seed in range(20)
    ]
    bias = sum(plain) / 20
    assert bias > 0.05
    assert abs(sum(infinite) / 20) < 0.15 * bias


def test_a_shift_remains_at_infinity() -> None:
    found = at_infinity(sample(2000, 1, shift=0.5), 10, 3)
    assert found.value == pytest.approx(WIDTH * 0.25, rel=0.1)


def test_the_spread_at_infinity_is_that_of_new_samples() -> None:
    again = [
        at_infinity(sample(400, seed, shift=0.3), 6, seed, with_spread=seed < 8)
        for seed in range(60)
    ]
    expected = torch.tensor([it.value for it in again]).std()
    spreads = torch.tensor([it.spread or 0.0 for it in again[:8]])
    assert float(spreads.mean()) == pytest.approx(float(expected), rel=0.4)


def test_the_spread_at_infinity_needs_two_hundred_images() -> None:
    few, enough = (at_infinity(sample(count, 0), 3, 0) for count in (199, 200))
    assert few.spread is None
    assert enough.spread is not None
    assert enough.spread > 0


def test_fewer_images_than_an_extrapolation_needs_are_said() -> None:
    assert infinity_warning("fid_inf", 80, WIDTH) is None
    warning = infinity_warning("fid_inf", 79, WIDTH)
    assert warning is not None
    assert warning.startswith("no fid_inf: ")
    assert warning.endswith("8 features need 80 images, not 79")
