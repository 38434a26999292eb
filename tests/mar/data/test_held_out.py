"""A share of each class is held out, chosen by the seed alone."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from mar.data.held_out import hold_out


@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 99),
)
def test_each_class_is_split_by_the_fraction(counts: list[int], fraction: float, seed: int) -> None:
    labels = torch.cat([torch.full((num,), label) for label, num in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    held_out = hold_out(labels, fraction, seed)
    for label, num in enumerate(counts):
        found = int(held_out[labels == label].sum())
        if num < 2:
            assert found == 0
        else:
            assert 1 <= found <= num - 1
            assert abs(found - fraction * num) <= 1


def test_the_seed_alone_chooses_what_is_held_out() -> None:
    labels = torch.arange(1000) % 10
    first = hold_out(labels, 0.2, 0)
    assert torch.equal(first, hold_out(labels, 0.2, 0))
    assert not torch.equal(first, hold_out(labels, 0.2, 1))
    assert first.sum() == 200
