"""What is known of an optimiser step that was taken."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Step:
    """An optimiser step that was taken.

    Attributes:
        index: Its number, from 1.
        loss: The loss of the batch.
        terms: The named parts of the loss.
        grad_norm: The norm of the gradient.
        lr: The learning rate.
        in_a_row: Steps up to this one, without a break, that were skipped because loss or gradient
            was not finite.
        longest: The most steps in a row that were skipped so far.
        skipped: All steps that were skipped so far.
        max_in_a_row: From how many in a row on the training has diverged.
    """

    index: int
    loss: Float[Tensor, ""]
    terms: dict[str, Tensor]
    grad_norm: Float[Tensor, ""]
    lr: float
    in_a_row: Float[Tensor, ""]
    longest: Float[Tensor, ""]
    skipped: Float[Tensor, ""]
    max_in_a_row: int

    def values(self) -> dict[str, float]:
        """Return the numbers for a curve, those that are finite; this waits for the device.

        Raises:
            DivergedError: too many steps in a row were skipped.
        """
        numbers = {"loss": self.loss, **self.terms, "grad_norm": self.grad_norm}
        values = {name: float(value) for name, value in numbers.items()}
        broken = {name: value for name, value in values.items() if not math.isfinite(value)}
        longest, skipped = int(self.longest), int(self.skipped)
        if longest >= self.max_in_a_row:
            found = " and ".join(f"{name} is {value}" for name, value in broken.items())
            what = found or "loss or gradient was not finite"
            raise DivergedError(
                f"training diverged at step {self.index}: {what}, in {longest} steps in a row"
            )
        finite = {name: value for name, value in values.items() if name not in broken}
        return {**finite, "lr": self.lr, **({"skipped_steps": skipped} if skipped else {})}

    @property
    def is_skipped(self) -> bool:
        """Whether loss or gradient was not finite; this waits for the device."""
        return int(self.in_a_row) > 0


class DivergedError(ValueError):
    """The loss or its gradient is not finite any more."""
