"""The formulas of power averages and of the sums of them agree with integrals taken numerically."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.integrate import quad

from mar.averaging.power import WIDEST, decay, exponent, snapshot_steps
from mar.averaging.profiles import Exponential, Power, fit


def power(gamma: float, end: float) -> Callable[[float], float]:
    """Return the profile as its definition says: s^gamma, scaled to integrate to 1."""
    total = quad(lambda s: s**gamma, 0, end)[0]
    return lambda s: s**gamma / total


def exponential(kept: float, end: float) -> Callable[[float], float]:
    total = quad(lambda s: kept ** (end - s), 0, end)[0]
    return lambda s: kept ** (end - s) / total


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.25, WIDEST])
def test_the_width_of_a_profile_is_its_standard_deviation(width: float) -> None:
    profile = power(exponent(width), 1)
    mean = quad(lambda s: s * profile(s), 0, 1)[0]
    square = quad(lambda s: s**2 * profile(s), 0, 1)[0]
    assert math.sqrt(square - mean**2) == pytest.approx(width, rel=1e-6)


def test_the_exponents_of_the_paper() -> None:
    """EDM2, section 3.1: gamma is 16.97 and 6.94 at widths of 0.05 and 0.10."""
    assert exponent(0.05) == pytest.approx(16.97, abs=0.005)
    assert exponent(0.10) == pytest.approx(6.94, abs=0.005)
    assert exponent(0.289) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("width", [0.05, 0.2])
def test_the_decays_of_all_steps_give_each_its_part_of_the_profile(width: float) -> None:
    weights = np.zeros(31)
    weights[0] = 1  # the initial weights
    for step in range(1, 31):
        weights *= decay(width, step)
        weights[step] += 1 - decay(width, step)
    profile = power(exponent(width), 30)
    parts = [quad(profile, step - 1, step)[0] for step in range(1, 31)]
    np.testing.assert_allclose(weights, [0, *parts], atol=1e-9)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((16.97, 40), (6.94, 40)),
        ((6.94, 25), (0.5, 40)),
        ((2.0, 40), (30.0, 7)),
        ((3.0, 9), (3.0, 9)),
    ],
)
def test_inner_products_are_integrals(first: tuple[float, int], second: tuple[float, int]) -> None:
    one, other = power(*first), power(*second)
    expected = quad(lambda s: one(s) * other(s), 0, min(first[1], second[1]))[0]
    assert Power(*first).dot(Power(*second)) == pytest.approx(expected, rel=1e-7)
    assert Power(*second).dot(Power(*first)) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("kept", [0.5, 0.9, 0.999])
def test_inner_products_with_an_exponential_are_integrals(kept: float) -> None:
    wanted, profile = Exponential(kept, 40), exponential(kept, 40)
    assert wanted.square() == pytest.approx(quad(lambda s: profile(s) ** 2, 0, 40)[0], rel=1e-7)
    for gamma, end in ((16.97, 40), (6.94, 12)):
        other = power(gamma, end)
        expected = quad(lambda s, other=other: other(s) * profile(s), 0, end)[0]
        assert wanted.dot(Power(gamma, end)) == pytest.approx(expected, rel=1e-7)


def snapshots(count: int, steps: int = 4000) -> list[Power]:
    return [Power.of_width(w, s) for s in snapshot_steps(steps, count) for w in (0.05, 0.1)]


def test_a_snapshot_is_rebuilt_from_itself_alone() -> None:
    found = fit(snapshots(16), Power.of_width(0.1, 4000))
    np.testing.assert_allclose(found.coefficients, [0] * 31 + [1], atol=1e-6)
    assert found.error < 1e-6


@pytest.mark.parametrize("wanted", [Power.of_width(0.15, 4000), Exponential(0.995, 4000)])
def test_the_error_is_the_distance_of_the_profiles_and_falls_with_more_snapshots(
    wanted: Power | Exponential,
) -> None:
    known = snapshots(8)
    found = fit(known, wanted)
    steps = np.arange(0.5, 4000)
    is_power = isinstance(wanted, Power)
    end = power(wanted.gamma, 4000) if is_power else exponential(wanted.decay, 4000)
    target = np.array([end(s) for s in steps])
    total = np.zeros_like(target)
    for profile, coefficient in zip(known, found.coefficients, strict=True):
        of_one = power(profile.gamma, profile.step)
        total += coefficient * np.array([of_one(s) * (s <= profile.step) for s in steps])
    distance = np.linalg.norm(total - target) / np.linalg.norm(target)
    assert found.error == pytest.approx(distance, rel=0.02)
    assert fit(snapshots(16), wanted).error < 0.5 * found.error < 0.03


@pytest.mark.parametrize(
    "wanted", [Power.of_width(0.2, 4000), Power.of_width(0.02, 4000), Exponential(0.999, 4000)]
)
def test_coefficients_sum_to_one_and_no_other_such_sum_is_closer(
    wanted: Power | Exponential,
) -> None:
    known = snapshots(4)
    found = np.array(fit(known, wanted).coefficients)
    assert found.sum() == pytest.approx(1, abs=1e-9)
    products = np.array([[one.dot(other) for other in known] for one in known])
    targets = np.array([wanted.dot(profile) for profile in known])
    gradient = products @ found - targets  # along (1, ..., 1), which leaves the sum
    np.testing.assert_allclose(gradient, gradient.mean(), rtol=0, atol=1e-9 * targets.max())


def test_snapshots_are_evenly_spread_and_the_last_is_the_end() -> None:
    assert snapshot_steps(4000, 4) == [1000, 2000, 3000, 4000]
    assert snapshot_steps(10, 3) == [4, 7, 10]
    assert snapshot_steps(3, 16) == [1, 2, 3]
    assert snapshot_steps(0, 16) == []
