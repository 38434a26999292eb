"""Work on many samples in worker processes, in order."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import (
    _MultiProcessingDataLoaderIter,  # pyright: ignore[reportPrivateUsage]
)


R = TypeVar("R")

PATIENCE = 600.0  # seconds; the images of a chunk are decoded within one
HINT = "fewer of them need less, and none are started with MAR_WORKERS=0"


def map_chunks(
    function: Callable[[list[int]], R],
    chunks: Iterable[list[int]],
    workers: int,
    *,
    patience: float = PATIENCE,
) -> Iterator[R]:
    """Yield `function(chunk)` for each chunk of indices, in their order; the chunks may be endless.

    With 0 workers all happens in this process, and there are never more workers than chunks. They
    are those of a DataLoader, which end with this process even when it is killed (those of
    `concurrent.futures` do not), and when the iterator is closed or forgotten. Tensors come back
    through pipes, not in shared memory, of which containers often have 64 MB: where it is full,
    a DataLoader waits for ever.

    Args:
        function: What a worker does.
        chunks: What it is given, one after the other.
        workers: Processes.
        patience: Seconds without a result after which workers are taken to hang, as they do where
            a network disk does not answer.

    Raises:
        ValueError: a call raised it, with the same message and not the worker's traceback; or
            workers cannot be started, die or hang.
    """
    num_chunks = len(chunks) if isinstance(chunks, Sized) else None
    if num_chunks is not None:
        workers = min(workers, num_chunks)
    results = _results(_Calls(function, piped=workers > 0), chunks, workers, patience)
    for result in islice(results, num_chunks):  # how workers end after the last one is no matter
        if isinstance(result, _Failure):
            raise ValueError(result.message)
        yield _unpiped(result)


def ranges(num: int, size: int) -> list[list[int]]:
    """Cut the indices up to `num` into chunks of `size`, the last one maybe shorter."""
    return [list(range(start, min(start + size, num))) for start in range(0, num, size)]


@dataclass(frozen=True)
class _Failure:
    message: str


@dataclass(frozen=True)
class _Piped:
    """A tensor, which a worker would otherwise put into shared memory."""

    values: "np.ndarray[Any, np.dtype[Any]]"


class _Calls(Dataset[R], Generic[R]):
    def __init__(self, function: Callable[[list[int]], R], *, piped: bool) -> None:
        self.function = function
        self.piped = piped

    def __getitems__(self, chunk: list[int]) -> R | _Failure | _Piped:
        """Do a whole chunk (DataLoader looks for this name before `__getitem__`)."""
        try:
            result = self.function(chunk)
        except ValueError as error:
            return _Failure(str(error))
        if self.piped and isinstance(result, Tensor):
            return _Piped(result.numpy())
        return result


def _results(
    calls: Dataset[Any], chunks: Iterable[list[int]], workers: int, patience: float
) -> Iterator[Any]:
    """Yield what a loader yields.

    Raises:
        ValueError: its workers cannot be started (no memory, no more processes, no /dev/shm for
            their locks), one has died, or none has answered for long.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create")  # as many as asked for
            results = iter(
                _Loader(
                    calls,
                    batch_sampler=chunks,
                    num_workers=workers,
                    prefetch_factor=4 if workers else None,
                    timeout=patience if workers else 0,
                    collate_fn=_unchanged,
                    generator=torch.Generator(),  # else it would draw a seed from the global one
                )
            )
    except OSError as error:
        raise ValueError(
            f"{workers} worker processes cannot be started ({error.strerror}; they need memory and "
            f"a few bytes of /dev/shm): {HINT}"
        ) from None
    while True:
        try:
            result = next(results)
        except StopIteration:
            return
        except RuntimeError as error:
            if workers and "exited unexpectedly" in str(error):
                raise ValueError(
                    f"one of {workers} worker processes was killed, mostly for want of memory: "
                    f"{HINT} ({_reason(error)})"
                ) from None
            if workers and "timed out" in str(error):
                raise ValueError(
                    f"none of {workers} worker processes has answered for {patience:g} s: is the "
                    "disk of the images there? MAR_WORKERS=0 reads them in this process"
                ) from None
            raise
        yield result


class _Loader(DataLoader[Any]):
    def _get_iterator(self) -> Any:
        return _Workers(self) if self.num_workers else super()._get_iterator()


class _Workers(_MultiProcessingDataLoaderIter):
    """Worker processes that end without a complaint, however they were started and end."""

    def __del__(self) -> None:
        # AttributeError: of what its constructor did not get to, where not all could be started.
        # RuntimeError: one failed while it ended, as libraries' threads make a forked process do.
        with suppress(AttributeError, RuntimeError):
            super().__del__()


def _reason(error: RuntimeError) -> str:
    """Return what is known of a worker's end, such as the signal that killed it."""
    return (str(error.__cause__ or "") or str(error)).splitlines()[0]


def _unpiped(result: Any) -> Any:
    if isinstance(result, _Piped):
        return torch.from_numpy(result.values)  # pyright: ignore[reportUnknownMemberType]
    return result


def _unchanged(result: R) -> R:
    return result
