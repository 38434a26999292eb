"""Annealed denoising: a token takes fewer steps the later it is generated (DiSA).

The more tokens are known, the closer the distribution of the next is to a point, and the fewer
steps it needs (Diffusion Step Annealing, arXiv 2505.20297).
"""

import math
from typing import Any, Literal, TypeVar

from pydantic import Field, field_validator

from mar.config import Config


S = TypeVar("S", bound="AnnealedSampler")
AnnealingSchedule = Literal["linear", "cosine", "two-stage"]


class AnnealedSampler(Config):
    """The part of a section `sample.head` that says how many steps a token takes, and when."""

    num_steps: int = Field(gt=0, description="steps of a token")
    final_num_steps: int | None = Field(
        gt=0,
        description="steps of a token in the last generation step, to which num_steps falls "
        "(DiSA: from 50 to 5); null for num_steps in all of them",
    )
    annealing: AnnealingSchedule = Field(
        description="how the steps fall to final_num_steps: linearly, along a half cosine, or at "
        "once half way"
    )

    @field_validator("final_num_steps")
    @classmethod
    def _falls(cls, value: int | None, info: Any) -> int | None:
        most = info.data.get("num_steps")  # absent where it is itself refused
        if value is not None and most is not None and value > most:
            raise ValueError(f"must be at most sample.head.num_steps, {most}")
        return value

    def at_step(self: S, step: int, num_generation_steps: int) -> S:
        """Return the settings of one generation step, counted from 0."""
        if self.final_num_steps is None:
            return self
        taken = annealed_steps(
            step, num_generation_steps, self.num_steps, self.final_num_steps, self.annealing
        )
        return self.model_copy(update={"num_steps": taken, "final_num_steps": None})


def annealed_steps(
    step: int, num_generation_steps: int, first: int, last: int, schedule: AnnealingSchedule
) -> int:
    """Return the steps of a token that is drawn in a generation step, rounded down (DiSA's code).

    Args:
        step: The generation step, counted from 0; a single one takes the first number of steps.
        num_generation_steps: Of the whole generation.
        first: Steps in the first generation step.
        last: Steps in the last one.
        schedule: How they fall in between.
    """
    end = max(num_generation_steps - 1, 1)
    if schedule == "linear":
        return last + (first - last) * (end - step) // end
    if schedule == "cosine":
        return last + math.floor((first - last) * (1 + math.cos(math.pi * step / end)) / 2)
    return first if 2 * step < end else last
