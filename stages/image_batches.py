"""Batches of images that memory holds; an image does not depend on the batch that it is in."""

import sys
from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from stages.endings import is_out_of_memory
from stages.stage import read_count


class ImageBatches:
    """Makes images in batches, and halves the batches where memory does not hold them.

    Attributes:
        size: Images at a time: at first `MAR_SAMPLE_BATCH`.
    """

    def __init__(self, name: str) -> None:
        """Begin; `name` is that of the program, for what it says."""
        self.name = name
        self.size = read_count("MAR_SAMPLE_BATCH", 256, least=1)

    def make(self, indices: Int[Tensor, " B"], make: Callable[[Tensor], Tensor]) -> Tensor:
        """Return what `make` returns of the indices, as one tensor.

        Raises:
            RuntimeError: there is not enough memory for one image.
        """
        made: list[Tensor] = []
        done = 0
        while done < len(indices):
            batch = indices[done : done + self.size]
            try:
                made.append(make(batch))
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
        return torch.cat(made)
