"""Processes that work together give what one process alone gives."""

import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import in_processes
from torch import Tensor

from mar import distributed
from stages import launch


def squares(num: int) -> list[int]:
    mine = distributed.share(range(num))
    return list(distributed.interleave((index * index for index in mine), num))


def refuse_five(num: int) -> list[int]:
    def work(index: int) -> int:
        if index == 5:
            raise ValueError("five is broken")
        return index

    mine = distributed.share(range(num))
    return list(distributed.interleave((work(index) for index in mine), num))


def collect() -> tuple[int, Tensor, Tensor, tuple[int, ...], list[int]]:
    rank = distributed.rank()
    distributed.barrier()
    return (
        distributed.from_main(lambda: 10 + rank),
        distributed.concatenate(torch.full((2,), rank)),
        distributed.add_up(torch.tensor(1.0 + rank)),
        distributed.agree(rank, 5 - rank),
        distributed.gather(rank),
    )


def refuse_in_main() -> None:
    def refuse() -> None:
        raise ValueError("only the main process reads this")

    distributed.from_main(refuse)


def wait_for_each(folder: str, seconds: float) -> float:
    """Wait longer than the group's timeout for each of two processes; return how long it took."""
    rank = dist.get_rank()
    dist.barrier()
    dist.destroy_process_group()
    place = f"file://{folder}/shorter"
    dist.init_process_group(
        "gloo", init_method=place, rank=rank, world_size=2, timeout=timedelta(seconds=2)
    )
    distributed.BEAT = 0.2
    begin = time.monotonic()
    distributed.from_main(lambda: time.sleep(seconds))
    with distributed.meeting():
        time.sleep(rank * seconds)
    return time.monotonic() - begin


def lose_main(marker: str) -> float:
    """Wait for a main process that dies; return how long it took to notice."""
    distributed.BEAT = 0.2

    def die() -> None:
        time.sleep(1)
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RuntimeError) as caught:
        distributed.from_main(die)
    assert launch.is_connection_lost(caught.value)
    return time.time() - Path(marker).stat().st_mtime


@pytest.mark.parametrize("num", [1, 2, 3])
def test_results_come_in_the_order_of_the_items(num: int, tmp_path: Path) -> None:
    expected = [index * index for index in range(7)]
    assert squares(7) == expected
    assert in_processes(squares, num, tmp_path, 7) == [expected] * num


def test_processes_agree(tmp_path: Path) -> None:
    for value, whole, total, largest, ranks in in_processes(collect, 2, tmp_path):
        assert value == 10
        assert whole.tolist() == [0, 0, 1, 1]
        assert total == 3
        assert largest == (1, 5)
        assert ranks == [0, 1]


@pytest.mark.parametrize("num", [1, 2])
def test_an_error_of_one_process_ends_all(num: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^five is broken$"):
        in_processes(refuse_five, num, tmp_path, 7)
    with pytest.raises(ValueError, match=r"^only the main process reads this$"):
        in_processes(refuse_in_main, num, tmp_path / "again")


def test_long_work_of_one_process_outlasts_the_timeout_of_the_group(tmp_path: Path) -> None:
    assert min(in_processes(wait_for_each, 2, tmp_path, str(tmp_path), 3.0)) > 5.5


def test_a_main_process_that_dies_at_work_is_noticed_at_once(tmp_path: Path) -> None:
    """Not by a timeout, which is half an hour here."""
    (waited,) = in_processes(lose_main, 2, tmp_path, str(tmp_path / "died"), killed=1)
    assert waited < 10


def download(folder: str) -> bool:
    """Return whether a file was there before."""

    def load() -> bool:
        file = Path(folder, "weights")
        there = file.exists()
        time.sleep(0.3)
        file.touch()
        return there

    return distributed.main_first(load)


def test_the_main_process_downloads_and_others_find_it(tmp_path: Path) -> None:
    assert in_processes(download, 3, tmp_path, str(tmp_path)) == [False, True, True]


def test_a_batch_is_shared_in_blocks() -> None:
    assert distributed.batch_share(8) == slice(0, 8)


def indivisible() -> slice:
    return distributed.batch_share(5)


def blocks() -> slice:
    return distributed.batch_share(8)


def test_a_batch_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    assert in_processes(blocks, 2, tmp_path) == [slice(0, 4), slice(4, 8)]
    with pytest.raises(ValueError, match=r"^batch size: 5 does not divide among 2 processes$"):
        in_processes(indivisible, 2, tmp_path / "again")
