"""Work on many samples in worker processes, in order."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset


R = TypeVar("R")


def map_chunks(
    function: Callable[[list[int]], R], chunks: Iterable[list[int]], workers: int
) -> Iterator[R]:
    """Yield `function(chunk)` for each chunk of indices, in their order; the chunks may be endless.

    With 0 workers all happens in this process. The workers are those of a DataLoader, which end
    with this process even when it is killed (those of `concurrent.futures` do not), and when the
    iterator is closed or forgotten.

    Raises:
        ValueError: a call raised it; with the same message, and not the worker's traceback.
    """
    loader: DataLoader[R | _Failure] = DataLoader(
        _Calls(function),
        batch_sampler=chunks,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        collate_fn=_unchanged,
        generator=torch.Generator(),  # else it would draw a seed from the global one
    )
    for result in loader:
        if isinstance(result, _Failure):
            raise ValueError(result.message)
        yield result


def ranges(num: int, size: int) -> list[list[int]]:
    """Cut the indices up to `num` into chunks of `size`, the last one maybe shorter."""
    return [list(range(start, min(start + size, num))) for start in range(0, num, size)]


@dataclass(frozen=True)
class _Failure:
    message: str


class _Calls(Dataset[R], Generic[R]):
    def __init__(self, function: Callable[[list[int]], R]) -> None:
        self.function = function

    def __getitems__(self, chunk: list[int]) -> R | _Failure:
        """Do a whole chunk (DataLoader looks for this name before `__getitem__`)."""
        try:
            return self.function(chunk)
        except ValueError as error:
            return _Failure(str(error))


def _unchanged(result: R) -> R:
    return result
