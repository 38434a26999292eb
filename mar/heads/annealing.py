"""Annealed denoising: a token takes fewer steps the later it is generated (DiSA).

The more tokens are known, the closer the distribution of the next is to a point, and the fewer
steps it needs (Diffusion Step Annealing, arXiv 2505.20297). Any other course can be listed.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Discriminator, Field, Tag, field_validator

from mar.config import Config, name_or_fields


S = TypeVar("S", bound="AnnealedSampler")
AnnealingSchedule = Literal["linear", "cosine", "two-stage"]
Annealing = Annotated[
    Annotated[AnnealingSchedule, Tag("name")]
    | Annotated[list[int], Field(min_length=1), Tag("fields")],
    Discriminator(name_or_fields),
]


class AnnealedSampler(Config):
    """The part of a section `sample.head` that says how many steps a token takes, and when.

    Attributes:
        fewest: Steps that a token can take.
    """

    fewest: ClassVar[int] = 1

    num_steps: int = Field(gt=0, description="steps of a token")
    final_num_steps: int | None = Field(
        gt=0,
        description="steps of a token in the last generation step, to which num_steps falls "
        "(DiSA: from 50 to 5); null for num_steps in all of them",
    )
    annealing: Annealing = Field(
        description="how the steps fall to final_num_steps: linear, cosine (half a period) or "
        "two-stage (at once half way); or a list of steps, with final_num_steps null: those of as "
        "many generation steps, evenly spaced from the first to the last, linear in between"
    )

    @field_validator("final_num_steps")
    @classmethod
    def _falls(cls, value: int | None, info: Any) -> int | None:
        most = info.data.get("num_steps")  # absent where it is itself refused
        if value is not None and most is not None and value > most:
            raise ValueError(f"must be at most sample.head.num_steps, {most}")
        return value

    @field_validator("annealing")
    @classmethod
    def _fits(cls, value: Annealing, info: Any) -> Annealing:
        if isinstance(value, str):
            return value
        if info.data.get("final_num_steps") is not None:
            raise ValueError(
                "must be linear, cosine or two-stage where sample.head.final_num_steps is not "
                f"null, got the list {value}"
            )
        if min(value) < cls.fewest:
            raise ValueError(f"must list steps of {cls.fewest} or more, got {min(value)}")
        most = info.data.get("num_steps")  # absent where it is itself refused
        if most is not None and max(value) != most:
            raise ValueError(
                f"must have sample.head.num_steps, {most}, as its largest, got {max(value)}"
            )
        return value

    def at_step(self: S, step: int, num_generation_steps: int) -> S:
        """Return the settings of one generation step, counted from 0."""
        if not isinstance(self.annealing, str):
            taken = listed_steps(step, num_generation_steps, self.annealing)
        elif self.final_num_steps is None:
            return self
        else:
            taken = annealed_steps(
                step, num_generation_steps, self.num_steps, self.final_num_steps, self.annealing
            )
        changes = {"num_steps": taken, "final_num_steps": None, "annealing": "linear"}
        return self.model_copy(update=changes)


def listed_steps(step: int, num_generation_steps: int, listed: Sequence[int]) -> int:
    """Return the steps of a token that is drawn in a generation step, rounded down.

    Args:
        step: The generation step, counted from 0; a single one takes the first number.
        num_generation_steps: Of the whole generation.
        listed: Steps in generation steps that are evenly spaced, the first and last included; as
            many as there are generation steps are one for each.
    """
    end = max(num_generation_steps - 1, 1)
    place, beyond = divmod(step * (len(listed) - 1), end)
    before, after = listed[place], listed[min(place + 1, len(listed) - 1)]
    return before + (after - before) * beyond // end


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
