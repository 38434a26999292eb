"""Chunks of work come back in order, from worker processes as from this one."""

import multiprocessing
import os
from collections.abc import Iterator
from itertools import count

import pytest
import torch

from mar.data.workers import map_chunks, ranges


def square(chunk: list[int]) -> list[int]:
    return [index * index for index in chunk]


def refuse_seven(chunk: list[int]) -> list[int]:
    if 7 in chunk:
        raise ValueError("seven is broken")
    return chunk


def process(chunk: list[int]) -> int:
    return os.getpid()


@pytest.mark.parametrize("workers", [0, 1])
def test_results_come_in_the_order_of_the_chunks(workers: int) -> None:
    chunks = [[index, index + 1] for index in range(20)]
    assert list(map_chunks(square, chunks, workers)) == [square(chunk) for chunk in chunks]


def test_workers_are_other_processes() -> None:
    assert set(map_chunks(process, [[0], [1]], 0)) == {os.getpid()}
    assert os.getpid() not in set(map_chunks(process, [[0], [1]], 1))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_keeps_its_message(workers: int) -> None:
    results = map_chunks(refuse_seven, ([index] for index in count()), workers)
    assert [next(results) for _ in range(7)] == [[index] for index in range(7)]
    with pytest.raises(ValueError, match=r"^seven is broken$"):
        next(results)


def test_workers_of_an_endless_stream_end_when_it_is_closed() -> None:
    def chunks() -> Iterator[list[int]]:
        for index in count():
            yield [index]

    results = map_chunks(square, chunks(), 1)
    assert next(results) == [0]
    assert multiprocessing.active_children()
    del results
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_generator_is_left_alone(workers: int) -> None:
    state = torch.get_rng_state()
    list(map_chunks(square, [[0], [1]], workers))
    assert torch.equal(torch.get_rng_state(), state)


def test_ranges_cut_indices_into_chunks() -> None:
    assert ranges(5, 2) == [[0, 1], [2, 3], [4]]
    assert ranges(4, 2) == [[0, 1], [2, 3]]
    assert ranges(0, 2) == []
