"""Hidden sets have exactly the size, and the distribution, that the paper gives them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mar.model.masking import num_hidden_after, sample_mask_ratio, sample_orders, split_orders


@pytest.mark.parametrize("minimum", [0.7, 0.2])
def test_mask_ratios_follow_the_truncated_normal(minimum: float, rng: torch.Generator) -> None:
    ratios = [sample_mask_ratio(rng, minimum=minimum, std=0.25) for _ in range(1000)]
    expected = stats.truncnorm((minimum - 1) / 0.25, 0, loc=1, scale=0.25)
    assert stats.kstest(ratios, expected.cdf).pvalue > 1e-5
    assert minimum <= min(ratios) < expected.ppf(0.01)
    assert expected.ppf(0.99) < max(ratios) <= 1
    assert sum(ratios) / 1000 == pytest.approx(expected.mean(), abs=0.02)


@pytest.mark.parametrize("minimum", [0.7, 0.2])
def test_a_mask_ratio_is_the_quantile_of_a_uniform_draw(minimum: float) -> None:
    expected = stats.truncnorm((minimum - 1) / 0.25, 0, loc=1, scale=0.25)
    for seed in range(50):
        uniform = torch.rand((), generator=seeded(seed), dtype=torch.float64)
        ratio = sample_mask_ratio(seeded(seed), minimum=minimum, std=0.25)
        assert ratio == pytest.approx(expected.ppf(float(uniform)), abs=1e-6)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_least_ratio_of_one_hides_all(rng: torch.Generator) -> None:
    assert [sample_mask_ratio(rng, minimum=1.0, std=0.25) for _ in range(20)] == [1.0] * 20


def test_orders_are_permutations(rng: torch.Generator) -> None:
    orders = sample_orders(50, 12, rng)
    assert torch.equal(orders.sort(dim=1).values, torch.arange(12).expand(50, -1))


def test_every_position_is_equally_likely_in_every_place(rng: torch.Generator) -> None:
    orders = sample_orders(6000, 5, rng)
    for place in range(5):
        counts = orders[:, place].bincount(minlength=5)
        assert stats.chisquare(counts.numpy()).pvalue > 1e-5


def test_samples_have_orders_of_their_own(rng: torch.Generator) -> None:
    assert len({tuple(order) for order in sample_orders(100, 16, rng).tolist()}) == 100


@given(seed=st.integers(0, 99), num_tokens=st.integers(1, 20), share=st.floats(0, 1))
def test_the_first_of_an_order_are_hidden_and_the_rest_visible(
    seed: int, num_tokens: int, share: float
) -> None:
    num_hidden = round(share * num_tokens)
    orders = sample_orders(4, num_tokens, seeded(seed))
    hidden, visible = split_orders(orders, num_hidden)
    assert hidden.tolist() == [sorted(order[:num_hidden]) for order in orders.tolist()]
    assert visible.tolist() == [sorted(order[num_hidden:]) for order in orders.tolist()]


@given(num_tokens=st.integers(1, 300), data=st.data())
def test_hidden_counts_fall_strictly_to_zero(num_tokens: int, data: st.DataObject) -> None:
    num_steps = data.draw(st.integers(1, num_tokens))
    counts = num_hidden_after(num_tokens, num_steps)
    assert len(counts) == num_steps
    assert counts[-1] == 0
    assert all(before > after for before, after in zip([num_tokens, *counts], counts, strict=False))


def test_hidden_counts_follow_the_cosine_where_a_token_a_step_allows() -> None:
    counts = num_hidden_after(256, 16)
    assert counts[:-1] == [math.floor(256 * math.cos(math.pi * k / 32)) for k in range(1, 16)]
    assert counts[:3] == [254, 251, 244]


def test_as_many_steps_as_tokens_reveal_one_in_each() -> None:
    assert num_hidden_after(9, 9) == [8, 7, 6, 5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("num_steps", [0, 17])
def test_steps_that_tokens_do_not_suffice_for_are_refused(num_steps: int) -> None:
    with pytest.raises(
        ValueError, match=f"generating 16 tokens needs 1 to 16 steps, got {num_steps}"
    ):
        num_hidden_after(16, num_steps)


def test_a_wide_normal_draws_all_ratios_alike(rng: torch.Generator) -> None:
    ratios = torch.tensor([sample_mask_ratio(rng, minimum=0.2, std=10.0) for _ in range(2000)])
    counts = torch.histc(ratios, bins=8, min=0.2, max=1.0)
    assert ((counts - 250).abs() < 75).all()  # 5 standard deviations of 15


class DeviceRng(torch.Generator):
    """A generator of this CPU that says it belongs to a device."""

    device = torch.device("meta")


def test_the_state_of_a_devices_generator_decides_the_mask_ratio() -> None:
    def ratios(seed: int) -> list[float]:
        rng = DeviceRng()
        rng.manual_seed(seed)
        first = sample_mask_ratio(rng, minimum=0.7, std=0.25)
        torch.rand(1, generator=rng)  # what the device would draw next
        return [first, sample_mask_ratio(rng, minimum=0.7, std=0.25)]

    assert len({*ratios(1), *ratios(2)}) == 4
    assert ratios(1) == ratios(1)
