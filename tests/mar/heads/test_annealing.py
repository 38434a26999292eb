"""The steps of a token fall from the first number to the last over a generation, as in DiSA."""

from itertools import pairwise

import pytest
from pydantic import ValidationError

from mar.heads.annealing import AnnealedSampler, AnnealingSchedule, annealed_steps, listed_steps


def taken(schedule: AnnealingSchedule, generation_steps: int = 64) -> list[int]:
    return [
        annealed_steps(step, generation_steps, 50, 5, schedule) for step in range(generation_steps)
    ]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "two-stage"])
@pytest.mark.parametrize("generation_steps", [2, 5, 64, 256])
def test_steps_fall_from_the_first_number_to_the_last(
    schedule: AnnealingSchedule, generation_steps: int
) -> None:
    steps = taken(schedule, generation_steps)
    assert (steps[0], steps[-1]) == (50, 5)
    assert all(later <= earlier for earlier, later in pairwise(steps))


def test_schedules_take_their_course() -> None:
    assert taken("linear", 10) == [50, 45, 40, 35, 30, 25, 20, 15, 10, 5]
    assert taken("linear", 4) == [50, 35, 20, 5]
    # (1 + cos) / 2 at thirds of a half turn is 3 / 4 and 1 / 4.
    assert taken("cosine", 4) == [50, 38, 16, 5]
    assert taken("two-stage", 4) == [50, 50, 5, 5]
    assert taken("two-stage", 5) == [50, 50, 5, 5, 5]


def test_a_single_generation_step_takes_the_first_number() -> None:
    for schedule in ("linear", "cosine"):
        assert taken(schedule, 1) == [50]


def sampler(num_steps: int, final_num_steps: int | None) -> AnnealedSampler:
    return AnnealedSampler(num_steps=num_steps, final_num_steps=final_num_steps, annealing="linear")


def test_without_a_final_number_all_generation_steps_are_alike() -> None:
    constant = sampler(50, None)
    assert all(constant.at_step(step, 64) is constant for step in range(64))
    assert [sampler(50, 50).at_step(step, 64).num_steps for step in range(64)] == [50] * 64


def test_steps_cannot_rise() -> None:
    with pytest.raises(
        ValidationError, match=r"must be at most sample\.head\.num_steps, 25"
    ) as caught:
        sampler(25, 26)
    (problem,) = caught.value.errors()
    assert problem["loc"] == ("final_num_steps",)


def listed(*numbers: int, final_num_steps: int | None = None) -> AnnealedSampler:
    return AnnealedSampler(num_steps=20, final_num_steps=final_num_steps, annealing=list(numbers))


def test_a_list_says_the_steps_of_each_generation_step() -> None:
    assert [listed(8, 20, 3, 3).at_step(step, 4).num_steps for step in range(4)] == [8, 20, 3, 3]
    assert [listed(20).at_step(step, 3).num_steps for step in range(3)] == [20, 20, 20]
    taken = listed(8, 20, 3, 3).at_step(1, 4)
    assert taken.at_step(3, 4) is taken  # it has no course of its own


def test_a_shorter_list_is_evenly_spaced_and_linear_in_between() -> None:
    assert [listed(20, 10, 4).at_step(step, 9).num_steps for step in range(9)] == [
        20, 17, 15, 12, 10, 8, 7, 5, 4,
    ]  # fmt: skip
    for generation_steps in (2, 5, 64):
        steps = [listed_steps(step, generation_steps, [50, 5]) for step in range(generation_steps)]
        assert steps == taken("linear", generation_steps)


def test_known_tokens_leave_fewer_generation_steps_than_are_listed() -> None:
    assert [listed_steps(step, 2, [20, 10, 8, 4]) for step in range(2)] == [20, 4]
    assert listed_steps(0, 1, [20, 10, 8, 4]) == 20


@pytest.mark.parametrize(
    ("numbers", "final", "message"),
    [
        (
            [20, 5],
            5,
            r"two-stage where sample\.head\.final_num_steps is not null, got",
        ),
        ([20, 0], None, "must list steps of 1 or more, got 0"),
        ([21, 5], None, r"must have sample\.head\.num_steps, 20, as its largest, got 21"),
        ([19, 5], None, r"must have sample\.head\.num_steps, 20, as its largest, got 19"),
        ([], None, "at least 1 item"),
    ],
)
def test_lists_that_say_something_else_are_refused(
    numbers: list[int], final: int | None, message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        listed(*numbers, final_num_steps=final)
