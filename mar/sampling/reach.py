"""Whether generated latents are as large as those of the data, or have run away.

Diffusion that was trained too little runs away where nothing bounds x_0, to values in the
thousands, of which a decoder makes pictures all the same.

Shapes: B batch, c channels of a latent, h w the latent grid.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor


MOST = 0.001  # share of values beyond the data's largest; of good samples, one in a million is


class Reach:
    """Counts the values of generated latents that are larger than all of the cached ones.

    Attributes:
        latent_std: What latents are divided by.
    """

    def __init__(self, largest: float | None, latent_std: float) -> None:
        """Begin to count.

        Args:
            largest: Of the cached latents (`latents.json`); without images, nothing is counted.
            latent_std: What they are divided by.
        """
        self._largest = largest
        self.latent_std = latent_std
        self._values = 0
        self._beyond = 0

    def update(self, latents: Shaped[Tensor, "B c h w"]) -> None:
        """Count normalised latents; indices of codes are all within."""
        if self._largest is None or not latents.is_floating_point():
            return
        within = latents.abs() * self.latent_std <= self._largest  # nor is nan
        self._values += within.numel()
        self._beyond += int(torch.count_nonzero(~within))

    @classmethod
    def of(cls, parts: Sequence["Reach"]) -> "Reach":
        """Return what several processes counted, together; all began with the same largest."""
        whole = cls(parts[0]._largest, parts[0].latent_std)
        whole._values = sum(part._values for part in parts)
        whole._beyond = sum(part._beyond for part in parts)
        return whole

    @property
    def share(self) -> float:
        """The share of all values that are beyond the largest."""
        return self._beyond / self._values if self._values else 0.0

    def warning(self, unset_bound: str | None) -> str | None:
        """Return a warning if there are too many of them.

        Args:
            unset_bound: The key that would bound what is drawn (`SampleConfig.unset_bound`).
        """
        if self.share <= MOST:
            return None
        return (
            f"{self.share:.2%} of the values of the generated latents are beyond "
            f"{self._largest:.4g}, the largest of the cached latents: "
            f"{too_large_reason(unset_bound)}"
        )


def too_large_reason(unset_bound: str | None) -> str:
    """Return why what is drawn may be too large.

    Args:
        unset_bound: The key that would bound it (`SampleConfig.unset_bound`).
    """
    bounds = "" if unset_bound is None else f", or nothing bounds what it draws ({unset_bound})"
    return f"the generator is trained too little{bounds}"
