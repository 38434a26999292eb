"""The rows of batches, step by step: read from their files ahead of time, or held on a device.

Shapes: N images of a cache.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import torch
from jaxtyping import Int64
from torch import Tensor

from mar.latents.rows import MappedRows, moved


SHARE = 0.5  # of a GPU's free memory, which a cache may take unasked; the rest is for activations
WINDOW_BYTES = 1 << 27  # read in the order of the files; at most two windows are in memory
WINDOW_STEPS = 16

Draw = Callable[[int], tuple[Tensor, Tensor]]  # of a step: its images, and which are mirrored


def fits(size: int, device: torch.device) -> bool:
    """Tell whether bytes may be held on a device unasked: of a GPU in half of its free memory."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return size <= SHARE * free


def held(
    rows: MappedRows, labels: Int64[Tensor, " N"], draw: Draw, first_step: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows and labels of each step's images, of a cache that the device holds, all of it."""
    copied, labels = rows.on(device), labels.to(device)
    for step in count(first_step):
        images, mirrored = draw(step)
        yield copied.read(rows.places(images, mirrored)), labels[moved(images, device)]


def read_ahead(
    rows: MappedRows, labels: Int64[Tensor, " N"], draw: Draw, first_step: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows and labels of each step's images, on a device.

    A thread reads a window of several steps in the order of the files, while the window before is
    used. So an epoch is shuffled as one, and still no file is read backwards within a window.
    """
    size = len(draw(first_step)[0])
    steps = min(max(WINDOW_BYTES // (size * rows.row_bytes), 1), WINDOW_STEPS)

    def read(first: int) -> list[tuple[Tensor, Tensor]]:
        drawn = [draw(step) for step in range(first, first + steps)]
        images, mirrored = (torch.cat(part) for part in zip(*drawn, strict=True))
        places = rows.places(images, mirrored)
        values = rows.read(places, pinned=device.type == "cuda")
        return list(zip(torch.split(values, size), torch.split(labels[images], size), strict=True))

    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(read, first_step)
        for first in count(first_step + steps, steps):
            window = ahead.result()
            ahead = reader.submit(read, first)
            while window:  # so that none is kept once it was used
                values, found = window.pop(0)
                yield moved(values, device), moved(found, device)
