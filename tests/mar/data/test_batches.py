"""The batch of a step depends on the step alone, and every epoch holds every sample once."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from mar.data.batches import batch_indices


@given(
    num_images=st.integers(1, 40),
    batch_size=st.integers(1, 100),
    seed=st.integers(0, 9),
    first_epoch=st.integers(0, 3),
)
def test_every_epoch_holds_every_index_once(
    num_images: int, batch_size: int, seed: int, first_epoch: int
) -> None:
    first, end = first_epoch * num_images, (first_epoch + 3) * num_images
    steps = range(first // batch_size, -(-end // batch_size))
    batches = [batch_indices(num_images, batch_size, seed=seed, step=step) for step in steps]
    assert {len(batch) for batch in batches} == {batch_size}
    skip = first - steps.start * batch_size
    epochs = torch.cat(batches)[skip : skip + 3 * num_images].reshape(3, num_images)
    assert torch.equal(epochs.sort().values, torch.arange(num_images).expand(3, -1))


def test_a_step_gives_the_same_batch_whatever_was_asked_before() -> None:
    def batch(step: int) -> list[int]:
        return batch_indices(50, 8, seed=1, step=step).tolist()

    forwards = [batch(step) for step in range(40)]
    backwards = [batch(step) for step in reversed(range(40))]
    assert forwards == backwards[::-1]


def test_a_batch_is_the_callers_own() -> None:
    batch_indices(5, 5, seed=0, step=0).zero_()
    assert batch_indices(5, 5, seed=0, step=0).sort().values.tolist() == [0, 1, 2, 3, 4]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [batch_indices(30, 30, seed=seed, step=step) for seed in range(3) for step in range(3)]
    assert len({tuple(order.tolist()) for order in orders}) == 9


def test_larger_batches_follow_the_same_stream_of_samples() -> None:
    small = torch.cat([batch_indices(7, 3, seed=0, step=step) for step in range(10)])
    large = torch.cat([batch_indices(7, 15, seed=0, step=step) for step in range(2)])
    assert torch.equal(small, large)
