"""Which weights of a training generate images: key `sample.weights` of `params.yaml`."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import Discriminator, Field, Tag

from mar.averaging.power import RelativeWidth
from mar.averaging.profiles import Exponential, Power
from mar.config import Config


class OfWidth(Config):
    """A power average of a relative width, rebuilt after the training."""

    width: RelativeWidth = Field(description="relative width of the average")

    def profile(self, steps: int) -> Power:
        """Return how the average counts the steps of a training."""
        return Power.of_width(self.width, steps)


class OfDecay(Config):
    """An exponential average, rebuilt after the training, without its initial weights."""

    decay: float = Field(gt=0, lt=1, description="decay of the average, per step")

    def profile(self, steps: int) -> Exponential:
        """Return how the average counts the steps of a training."""
        return Exponential(self.decay, steps)


Rebuilt = OfWidth | OfDecay


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "name"
    if isinstance(value, Mapping):
        return "decay" if "decay" in cast(Mapping[str, Any], value) else "width"
    return "decay" if isinstance(value, OfDecay) else "width"


# `ema` is the average of training.ema_decay.
WeightsChoice = Annotated[
    Annotated[Literal["ema", "raw"], Tag("name")]
    | Annotated[OfWidth, Tag("width")]
    | Annotated[OfDecay, Tag("decay")],
    Discriminator(_kind),
]
