"""The randomness of generated images, each from its own (seed, index).

Shapes: B batch, N tokens of an image, M tokens drawn in a step, C channels of a token, S diffusion
steps, G generation steps after the first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mar import seeds
from mar.heads.base import Noise
from mar.model import masking
from mar.model.mar import MAR
from mar.sampling.config import SampleConfig


@dataclass(frozen=True)
class SamplingNoise:
    """All randomness of a batch of generated images, by sample and position.

    Attributes:
        orders: Order of each image's tokens, of which the last is generated first.
        initial: Initial noise of each token.
        steps: Noise of the head's own steps.
        later: With order `confidence`, a position is drawn in every generation step until it is
            kept; after the first step, this replaces `initial`.
    """

    orders: Int[Tensor, "B N"]
    initial: Float[Tensor, "B N C"]
    steps: Float[Tensor, "S B N C"]
    later: Float[Tensor, "G B N C"] | None = None

    def to(self, device: torch.device) -> "SamplingNoise":
        """Return the same noise on another device."""
        return SamplingNoise(
            self.orders.to(device),
            self.initial.to(device),
            self.steps.to(device),
            None if self.later is None else self.later.to(device),
        )

    def at(
        self, positions: Int[Tensor, "B M"], step: int = 0, num_noises: int | None = None
    ) -> Noise:
        """Return the head's noise for some positions in a generation step, as rows.

        Where the head takes fewer steps than there is noise for, the noise of the first is used.
        """
        initial = self.initial if self.later is None or step == 0 else self.later[step - 1]
        index = masking.expand_index(positions, initial.shape[2])  # (B, M, C)
        used = self.steps[:num_noises]
        steps = used.gather(2, index.expand(len(used), -1, -1, -1))  # (S, B, M, C)
        return Noise(initial.gather(1, index).flatten(0, 1), steps.flatten(1, 2))


def draw_noise(model: MAR, indices: Sequence[int], config: SampleConfig) -> SamplingNoise:
    """Draw the randomness of the samples `indices`, each from (seed, index) alone.

    So an image does not depend on its batch or on the number of processes. Its noise does not
    depend on the number of generation steps either, except with order `confidence`: there each
    position has a draw of its own in every step, since otherwise a draw from the tail of the
    distribution would stay improbable to the end. The draws are made on the CPU, so every device
    gets the same.
    """
    num_later = config.num_steps - 1 if config.order == "confidence" else 0
    counts = [1, config.head.num_noises, num_later]
    size = (sum(counts), model.num_tokens, model.channels)
    rngs = [seeds.make_rng(config.seed, index) for index in indices]
    orders = torch.cat([masking.sample_orders(1, model.num_tokens, rng) for rng in rngs])
    if config.order == "raster":
        orders = masking.raster_orders(len(orders), model.num_tokens, orders.device)
    noise = torch.stack([torch.randn(size, generator=rng) for rng in rngs], dim=1)
    initial, steps, later = torch.split(noise, counts)
    return SamplingNoise(orders, initial[0], steps, later if num_later else None)
