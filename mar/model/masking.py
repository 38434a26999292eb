"""Which tokens are hidden: mask ratios and orders for training, the schedule for generation.

Shapes: B batch, N tokens of an image, M hidden tokens, V visible tokens (N = M + V), D any width.
Everywhere, an order lists positions; the hidden tokens are the *first* of it, so tokens appear from
its end backwards (MAR, section 3.4; MaskGIT, section 3.2).
"""

import hashlib
import math
import sys
from statistics import NormalDist

import torch
from jaxtyping import Int, Shaped
from torch import Tensor


def sample_mask_ratio(rng: torch.Generator, *, minimum: float, std: float) -> float:
    """Draw a mask ratio: normal of mean 1, truncated to [minimum, 1] (MAR, 4.1: std 0.25)."""
    normal = NormalDist(1.0, std)
    lowest, highest = normal.cdf(minimum), 0.5  # the normal is cut at its mean
    uniform = float(torch.rand((), generator=on_cpu(rng), dtype=torch.float64))
    quantile = max(lowest + uniform * (highest - lowest), sys.float_info.min)
    return min(max(normal.inv_cdf(quantile), minimum), 1.0)


def on_cpu(rng: torch.Generator) -> torch.Generator:
    """Return a generator that draws on the CPU: itself, or one seeded by its state.

    A number that the program itself needs is drawn with it, since to read one of a GPU would wait
    for all work that the GPU has been given. The state of a GPU's generator is kept on the CPU.
    """
    if rng.device.type == "cpu":
        return rng
    digest = hashlib.sha256(rng.get_state().numpy().tobytes()).digest()
    torch.rand((), generator=rng, device=rng.device)  # so that the next call finds another state
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def sample_orders(batch: int, num_tokens: int, rng: torch.Generator) -> Int[Tensor, "B N"]:
    """Draw an independent random order of the positions for each sample."""
    keys = torch.rand(batch, num_tokens, generator=rng, device=rng.device)
    return keys.argsort(dim=1)


def raster_orders(batch: int, num_tokens: int, device: torch.device) -> Int[Tensor, "B N"]:
    """Return the order in which tokens appear row by row: from its end backwards, 0, 1, 2, ..."""
    return torch.arange(num_tokens, device=device).flip(0).repeat(batch, 1)


def split_orders(
    orders: Int[Tensor, "B N"], num_hidden: int
) -> tuple[Int[Tensor, "B M"], Int[Tensor, "B V"]]:
    """Return the positions of the hidden and of the visible tokens, each ascending."""
    hidden = orders[:, :num_hidden].sort(dim=1).values  # (B, M)
    visible = orders[:, num_hidden:].sort(dim=1).values  # (B, V)
    return hidden, visible


def expand_index(positions: Int[Tensor, "B M"], width: int) -> Int[Tensor, "B M W"]:
    """Repeat positions along a new last dimension, as `gather` and `scatter` expect them."""
    return positions[:, :, None].expand(-1, -1, width)


def gather_tokens(
    x: Shaped[Tensor, "B N D"], positions: Int[Tensor, "B M"]
) -> Shaped[Tensor, "B M D"]:
    """Select some positions of each sample."""
    return x.gather(1, expand_index(positions, x.shape[2]))


def num_hidden_after(num_tokens: int, num_steps: int) -> list[int]:
    """Return how many tokens are still hidden after each generation step; the last entry is 0.

    A cosine schedule, with at least one token in every step (MaskGIT, section 3.3).

    Raises:
        ValueError: there are more steps than tokens.
    """
    if not 1 <= num_steps <= num_tokens:
        raise ValueError(
            f"generating {num_tokens} tokens needs 1 to {num_tokens} steps, got {num_steps}"
        )
    counts: list[int] = []
    hidden = num_tokens
    for step in range(num_steps - 1):
        wanted = math.floor(num_tokens * math.cos(math.pi / 2 * (step + 1) / num_steps))
        hidden = max(1, min(hidden - 1, wanted))
        counts.append(hidden)
    return [*counts, 0]
