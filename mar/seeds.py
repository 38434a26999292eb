"""Random number generators that depend on keys alone, and not on what was drawn before.

Keyed by (seed, step), a resumed run draws what an undisturbed one draws; keyed by (seed, sample),
an image is the same in a batch of any size (EDM2 seeds its steps and samples so).
"""

import hashlib
import json

import torch


def make_rng(*keys: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a new generator for the keys.

    They are hashed with SHA-256 into a seed of 63 bits, so the streams of neighbouring keys are
    unrelated. A word among them, as in `make_rng("noise", seed, step)`, keeps two uses of one
    seed apart. On the CPU torch uses only the low 32 bits of a seed (on a GPU, all of them): of
    50,000 streams, some two are the same with probability 1/4.
    """
    content = hashlib.sha256(json.dumps(keys).encode()).digest()
    seed = int.from_bytes(content[:8], "big") >> 1
    return torch.Generator(device).manual_seed(seed)
