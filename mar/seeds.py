"""Random number generators that depend on keys alone, and not on what was drawn before.

With the keys (seed, step), a resumed run draws the same numbers as an uninterrupted one; with
(seed, sample), an image is the same in a batch of any size. (EDM2 seeds steps and samples like
this.)
"""

import hashlib
import json

import torch


def make_rng(*keys: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a new generator for the keys.

    They are hashed with SHA-256 into a seed of 63 bits, so the streams of neighbouring keys are
    unrelated. A word among the keys, as in `make_rng("noise", seed, step)`, separates two uses of
    one seed. On the CPU torch uses only the low 32 bits of a seed (on a GPU, all of them), so among
    50,000 streams two are equal with probability 1/4.
    """
    content = hashlib.sha256(json.dumps(keys).encode()).digest()
    seed = int.from_bytes(content[:8], "big") >> 1
    return torch.Generator(device).manual_seed(seed)
