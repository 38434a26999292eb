"""Batches of images that memory holds; an image does not depend on the batch that it is in."""

import os
import sys
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Int
from torch import Tensor

from mar.sampling.images import DECODED
from mar.sampling.memory import Memory
from stages.endings import is_out_of_memory
from stages.stage import read_count


USUAL = 256  # images at a time, where nobody says how many and no GPU's memory is asked
MOST = (
    1024  # that are chosen for a GPU; MAR-B's matrix products are large enough long before (ours)
)
SHARE = 0.8  # of a GPU's free memory: convolutions take some for themselves, gaps take the rest


class ImageBatches:
    """Makes images in batches, and halves the batches where memory does not hold them.

    Attributes:
        size: Images at a time.
    """

    def __init__(self, name: str, size: int) -> None:
        """Begin; `name` is that of the program, for what it says."""
        self.name = name
        self.size = size

    def each(
        self, indices: Int[Tensor, " B"], make: Callable[[Tensor], Tensor]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of the indices, each with what `make` returns of it.

        Raises:
            RuntimeError: there is not enough memory for one image.
        """
        done = 0
        while done < len(indices):
            batch = indices[done : done + self.size]
            try:
                made = make(batch)
            except (RuntimeError, MemoryError) as error:
                if len(batch) == 1 or not is_out_of_memory(error):
                    raise
                self.size = len(batch) // 2
                sys.stderr.write(
                    f"{self.name}: there is not enough memory for {len(batch)} images at a time; "
                    f"trying {self.size} (MAR_SAMPLE_BATCH)\n"
                )
            else:
                done += len(batch)
                yield batch, made

    def make(self, indices: Int[Tensor, " B"], make: Callable[[Tensor], Tensor]) -> Tensor:
        """Return what `make` returns of the indices, as one tensor.

        Raises:
            RuntimeError: there is not enough memory for one image.
        """
        return torch.cat([made for _, made in self.each(indices, make)])


def free_memory(device: torch.device) -> int:
    """Return the bytes of a GPU that this process can still take, those that torch keeps included.

    What other programs on it hold is not free.
    """
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def choose_size(
    device: torch.device,
    count: Callable[[], Memory],
    free_memory: Callable[[torch.device], int] = free_memory,
) -> int:
    """Return how many images are generated at a time.

    `MAR_SAMPLE_BATCH`, or of a GPU as many as its free memory holds, beside the decoding of others.

    Args:
        device: Where they are generated; the weights are on it already.
        count: Counts what a generation takes (`mar.sampling.memory.count_memory`).
        free_memory: Returns a GPU's free bytes.

    Raises:
        ValueError: `MAR_SAMPLE_BATCH` is not a number of images.
    """
    if device.type != "cuda" or os.environ.get("MAR_SAMPLE_BATCH"):
        return read_count("MAR_SAMPLE_BATCH", USUAL, least=1)
    return min(MOST, count().most_images(int(SHARE * free_memory(device)), DECODED))
