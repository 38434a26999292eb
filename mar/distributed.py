"""Processes that work on one thing together (torch.distributed), or this process alone.

Every function works without a process group too, as the only process. What a function computes for
the whole never depends on the number of processes.
Shapes: B batch.
"""
# torch.distributed has few types:
# pyright: reportUnknownMemberType=false

import pickle
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor


T = TypeVar("T")
R = TypeVar("R")

Parallel = Literal["ddp", "fsdp"]  # how a model is trained: whole in each process, or spread

BEAT = 30.0  # seconds between two signs of life, while one process waits for another


def is_distributed() -> bool:
    """Whether there is a process group."""
    return dist.is_available() and dist.is_initialized()


def num_processes() -> int:
    """Return how many processes work together."""
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if is_distributed() else 0


def is_main() -> bool:
    """Whether this is the process that writes outputs and talks to people."""
    return rank() == 0


def barrier() -> None:
    """Wait until all processes are here."""
    agree(0)


def share(items: Sequence[T]) -> Sequence[T]:
    """Return the items that are this process's to work on: every n-th, from its rank on."""
    return items[rank() :: num_processes()]


def batch_share(batch_size: int, key: str = "batch size") -> slice:
    """Return which samples of a batch are this process's: a block of equal size in each.

    Args:
        batch_size: Samples of the whole batch.
        key: What sets it, for the message.

    Raises:
        ValueError: the batch does not divide among the processes.
    """
    if batch_size % num_processes():
        raise ValueError(f"{key}: {batch_size} does not divide among {num_processes()} processes")
    size = batch_size // num_processes()
    return slice(rank() * size, (rank() + 1) * size)


def gather(value: T) -> list[T]:
    """Return the value of each process, by rank, in every process; values can be any objects."""
    if not is_distributed():
        return [value]
    values: list[T | None] = [None] * num_processes()
    dist.all_gather_object(values, value)
    return values  # pyright: ignore[reportReturnType]


def from_main(function: Callable[[], T]) -> T:
    """Call a function, which must not communicate, in the main process; return its result in all.

    Raises:
        Exception: what the call raised.
    """
    if not is_distributed():
        return function()
    outcome: list[tuple[T | None, Exception | None]] = [(None, None)]
    failure: Exception | None = None
    with meeting():
        if is_main():
            try:
                outcome = [(function(), None)]
            except Exception as error:  # the others would wait for ever
                outcome = [(None, portable(error))]
                failure = error
    dist.broadcast_object_list(outcome)
    result, error = outcome[0]
    if failure is not None:
        raise failure
    if error is not None:
        raise error
    return result  # pyright: ignore[reportReturnType]


def main_first(function: Callable[[], T]) -> T:
    """Call a function in the main process, then in the others, which find what it downloaded.

    Raises:
        Exception: what a call raised.
    """
    found: list[T] = []
    from_main(lambda: found.append(function()))
    return found[0] if found else function()


@contextmanager
def meeting() -> Generator[None]:
    """Wait at the end of the block until all processes are there, however long one works in it.

    All processes enter it and do not communicate in it. Again and again they tell one another
    whether they are at work, so the timeout of the process group counts from the last time; if one
    dies, that fails at once.

    Raises:
        RuntimeError: a process is lost.
    """
    if not is_distributed():
        yield
        return
    ended = threading.Event()
    lost: list[RuntimeError] = []

    def beat() -> None:
        try:
            while agree(int(not ended.wait(BEAT)))[0]:
                pass
        except RuntimeError as error:
            lost.append(error)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
    thread.join()  # not where an error or a signal ends this process: the others may never come
    if lost:
        raise lost[0]


def agree(*values: int) -> tuple[int, ...]:
    """Return the largest of each number over all processes, without waiting for a device."""
    if not is_distributed():
        return values
    numbers = torch.tensor(values)  # on the CPU: by gloo, whatever the device computes meanwhile
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return tuple(int(number) for number in numbers)


def add_up(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes; the tensor itself is changed."""
    if is_distributed():
        dist.all_reduce(tensor)
    return tensor


def concatenate(part: Tensor) -> Tensor:
    """Return the parts of all processes, one after the other by rank; they have one shape.

    Args:
        part: This process's part of the batch (B, ...).
    """
    if not is_distributed():
        return part
    parts = [torch.empty_like(part) for _ in range(num_processes())]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts)


def interleave(mine: Iterable[R], num: int) -> Iterator[R]:
    """Yield the results for `num` items, in the order of the items, in every process.

    Each item is worked on by one process, so the results are those of one process alone.

    Args:
        mine: The results for this process's `share` of the items: any objects, tensors among them
            on the CPU.
        num: The number of all items.

    Raises:
        ValueError: a process raised one; all do.
        OSError: likewise.
    """
    results = iter(mine)
    for start in range(0, num, num_processes()):
        outcome: R | Exception | None = None
        if start + rank() < num:
            try:
                outcome = next(results)
            except (ValueError, OSError) as error:
                outcome = portable(error)
        for found in gather(outcome)[: num - start]:
            if isinstance(found, Exception):
                raise found
            yield found  # pyright: ignore[reportReturnType]


def portable(error: Exception) -> Exception:
    """Return an error that another process can be sent, with the same message."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # its constructor takes something else than the message
        return OSError(str(error)) if isinstance(error, OSError) else ValueError(str(error))
    return error
