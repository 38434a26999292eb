"""Chunks of work come back in order, from worker processes as from this one."""

import gc
import multiprocessing
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import Tensor

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


def hang(chunk: list[int]) -> list[int]:
    if chunk == [1]:
        time.sleep(3600)
    return chunk


def test_a_worker_that_hangs_ends_in_one_line() -> None:
    results = map_chunks(hang, [[0], [1]], 1, patience=1.0)
    assert next(results) == [0]
    with pytest.raises(ValueError, match=r"^none of 1 worker processes has answered for 1 s: is "):
        next(results)


def images(chunk: list[int]) -> Tensor:
    return torch.full((3,), chunk[0], dtype=torch.uint8)


def test_tensors_of_workers_are_in_no_shared_memory() -> None:
    """Containers often have little, and where it is full, a DataLoader waits for ever."""
    results = list(map_chunks(images, [[0], [1]], 1))
    assert [result.tolist() for result in results] == [[0] * 3, [1] * 3]
    assert not any(result.is_shared() for result in results)


def test_there_are_no_more_workers_than_chunks() -> None:
    results = map_chunks(square, [[1], [2], [3]], 3000)
    assert next(results) == [1]
    assert len(multiprocessing.active_children()) == 3
    assert list(results) == [[4], [9]]


def die(chunk: list[int]) -> list[int]:
    if chunk == [1]:
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does where memory is full
    return chunk


def test_a_worker_that_is_killed_ends_the_work_with_a_reason() -> None:
    with pytest.raises(ValueError, match=r"^one of 1 worker processes was killed, .*MAR_WORKERS=0"):
        list(map_chunks(die, [[0], [1], [2]], 1))


def fail_at_the_end(chunk: list[int]) -> list[int]:
    def fail() -> None:
        raise OSError

    getattr(threading, "_register_atexit")(fail)  # noqa: B009  (a private name that libraries use)
    return chunk


def test_a_worker_that_fails_when_all_is_done_has_done_its_work() -> None:
    assert list(map_chunks(fail_at_the_end, [[0], [1]], 1)) == [[0], [1]]
    gc.collect()  # nothing is left that would complain (warnings are errors here)


@pytest.mark.parametrize("spare", [1, 2, 3, 4, 6])
def test_workers_that_cannot_start_are_an_error_with_a_reason(spare: int) -> None:
    """Here for want of a file, as they need some; without /dev/shm it is the same."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = len(os.listdir("/proc/self/fd")) if Path("/proc").is_dir() else 50  # noqa: PTH208
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (held + spare, limits[1]))
        with pytest.raises(ValueError, match=r"cannot be started .*/dev/shm.*MAR_WORKERS=0$"):
            next(map_chunks(square, [[0], [1]], 2))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    gc.collect()  # what was half made is deleted without a complaint (warnings are errors here)


def test_ranges_cut_indices_into_chunks() -> None:
    assert ranges(5, 2) == [[0, 1], [2, 3], [4]]
    assert ranges(4, 2) == [[0, 1], [2, 3]]
    assert ranges(0, 2) == []
