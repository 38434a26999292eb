"""Which samples make up the batch of a training step, as a function of the seed and the step alone.

So the step is the position in the epoch: a checkpoint that holds it needs nothing else to go on
with the next batch, whatever number of processes share a batch. An epoch is one permutation of all
samples; in what order a batch is read from the disk is up to who reads it (`mar.latents.rows`).
Shapes: B batch.
"""

from functools import lru_cache

import torch
from jaxtyping import Int64
from torch import Tensor

from mar.seeds import make_rng


def batch_indices(num_images: int, batch_size: int, *, seed: int, step: int) -> Int64[Tensor, " B"]:
    """Return the indices of the batch of a step (steps count from 0).

    The permutations of all epochs, laid end to end, are cut into batches. Each epoch holds every
    index once; a batch may span two epochs, or several where it is larger than the set.
    """
    assert num_images > 0
    assert batch_size > 0
    assert step >= 0
    first, end = step * batch_size, (step + 1) * batch_size
    parts: list[Tensor] = []
    for epoch in range(first // num_images, (end - 1) // num_images + 1):
        start = epoch * num_images
        permutation = _permutation(num_images, seed, epoch)
        parts.append(permutation[max(first - start, 0) : end - start])
    return torch.cat(parts)


@lru_cache(maxsize=2)
def _permutation(num_images: int, seed: int, epoch: int) -> Int64[Tensor, " N"]:
    """Return the order of an epoch; kept, as drawing it for each step of an epoch would be slow."""
    return torch.randperm(num_images, generator=make_rng("batches", seed, epoch))
