"""A codebook: the nearest code of a latent, how codes are used, and how dead ones are revived.

Shapes: B batch, c channels of a latent, h w the latent grid, K codes, R latents in a row.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import embedding


DEAD_AFTER = 100  # optimiser steps without use; ours
BLOCK = 2**24  # distances held at a time: 64 MiB


def nearest(latents: Float[Tensor, "R c"], codes: Float[Tensor, "K c"]) -> Int[Tensor, " R"]:
    """Return the code of least squared distance to each latent, of several the first.

    |z - e|^2 = |z|^2 - 2 z e + |e|^2, whose first term all codes share; so it takes a matrix
    product, in float32 whatever the context, and never a tensor of R x K x c. Both are taken from
    the codes' mean, or a large one would drown the differences.
    """
    with torch.autocast(latents.device.type, enabled=False):
        centre = codes.float().mean(dim=0)
        codes = codes.float() - centre
        lengths = codes.square().sum(dim=1)  # (K)
        rows = max(1, BLOCK // len(codes))
        parts = [latents[start : start + rows] for start in range(0, len(latents), rows)]
        found = [
            torch.addmm(lengths, part.float() - centre, codes.T, alpha=-2).argmin(dim=1)
            for part in parts
        ]
    return torch.cat(found)


def use_of(counts: Int[Tensor, " K"]) -> dict[str, Float[Tensor, ""]]:
    """Return the share of codes that were chosen, and the perplexity of the choices.

    The perplexity is how many codes would be as hard to guess if all were chosen equally often.
    """
    share = counts.float() / counts.sum()
    entropy = -torch.xlogy(share, share).sum()
    return {"codebook_use": (counts > 0).float().mean(), "perplexity": entropy.exp()}


class CodebookUse:
    """How the codes of a tokenizer are used over many images; nothing, without a codebook."""

    def __init__(self, codebook_size: int | None) -> None:
        self._counts = torch.zeros(codebook_size or 0, dtype=torch.long)

    def update(self, indices: Int[Tensor, "B h w"] | None) -> None:
        """Count the codes of some images."""
        if indices is not None:
            self._counts += indices.flatten().cpu().bincount(minlength=len(self._counts))

    def compute(self) -> dict[str, float]:
        """Return the numbers of `use_of`, or none without a codebook."""
        if not len(self._counts):
            return {}
        return {name: float(value) for name, value in use_of(self._counts).items()}


class Codebook(nn.Module):
    """Codes, and for how many steps each has not been used (a buffer: checkpoints hold it)."""

    unused_steps: Int[Tensor, " K"]

    def __init__(self, size: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, channels)
        self.register_buffer("unused_steps", torch.zeros(size, dtype=torch.long))

    def initialize(self, rng: torch.Generator) -> None:
        """Set codes to U(-1, 1) / K (VQGAN), and count all of them as dead.

        Weights come from a generator alone, so no images are at hand here. But where dead codes are
        revived, the first step replaces all that it did not use by latents of its batch, which
        spreads them over what the encoder puts out from the start.
        """
        bound = 1 / len(self.embedding.weight)
        nn.init.uniform_(self.embedding.weight, -bound, bound, generator=rng)
        self.unused_steps.fill_(DEAD_AFTER)

    def quantise(self, latents: Float[Tensor, "B c h w"]) -> Int[Tensor, "B h w"]:
        """Return the index of the nearest code."""
        rows = latents.movedim(1, 3)  # (B, h, w, c)
        codes = self.embedding.weight.detach()
        return nearest(rows.reshape(-1, rows.shape[3]), codes).reshape(rows.shape[:3])

    def embed(self, indices: Int[Tensor, "B h w"]) -> Float[Tensor, "B c h w"]:
        """Return the codes."""
        return embedding(indices, self.embedding.weight).movedim(3, 1)

    @torch.no_grad()
    def count(self, counts: Int[Tensor, " K"]) -> None:
        """Note which codes a step used."""
        self.unused_steps.add_(1).masked_fill_(counts > 0, 0)

    @torch.no_grad()
    def revive(self, latents: Float[Tensor, "B c h w"], rng: torch.Generator) -> Bool[Tensor, " K"]:
        """Replace dead codes by finite latents drawn at random, and return which these were."""
        dead = self.unused_steps >= DEAD_AFTER
        rows = latents.movedim(1, 3).flatten(0, 2)  # (R, c)
        order = torch.randperm(len(rows), generator=rng, device=rows.device)
        numbers = torch.arange(len(dead), device=rows.device) % len(rows)
        codes, drawn = self.embedding.weight, rows[order[numbers]]
        dead &= drawn.isfinite().all(dim=1)
        codes.copy_(torch.where(dead[:, None], drawn, codes))
        self.unused_steps.masked_fill_(dead, 0)
        return dead

    @torch.no_grad()
    def take(self, other: "Codebook", chosen: Bool[Tensor, " K"]) -> None:
        """Copy the chosen codes of another codebook."""
        codes = self.embedding.weight
        codes.copy_(torch.where(chosen[:, None], other.embedding.weight, codes))
