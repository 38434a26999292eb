"""Where a generator's weights are from: trained here, or a file of the release.

What opens the file and checks it is `mar.released.reader`, which a stage loads by name: it can
refuse a file, and editing it trains nothing again.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from mar.model.mar import CONDITION, MAR, GeneratorConfig
from mar.released.file import ReleasedFile
from mar.released.names import CLASSES, from_released


class TrainedGenerator(GeneratorConfig):
    """Section `generator`, trained here from random weights."""

    source: Literal["trained"] = Field(description="trained here")


class ReleasedGenerator(GeneratorConfig, ReleasedFile):
    """Section `generator`, begun with a file of the released layout."""

    source: Literal["released"] = Field(description="a file of the released layout")
    weights: Literal["model", "model_ema"] = Field(
        description="which of the file's two: the weights trained, or their average, which "
        "generates better"
    )
    classes: Literal["released", "new"] = Field(
        description="the file's class embedding, or a new one for the classes of the data, which "
        "begins with random numbers and has to be trained; new where texts take its place"
    )

    def to_ours(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors of the file under our names, as float32, without what is to be new."""
        kept = {name: value for name, value in tensors.items() if not self.is_new(name)}
        return from_released(kept)

    def is_new(self, name: str) -> bool:
        """Say whether a tensor of the file, by its released name, is not taken."""
        return self.classes == "new" and name == CLASSES


def fitted(weights: Mapping[str, Tensor], model: MAR) -> dict[str, Tensor]:
    """Return the weights of a class-conditional model as a model of the same sizes takes them.

    With texts it begins as that model without a class: its null vector is in each slot, and texts
    add nothing to it yet.
    """
    others = {name: value for name, value in weights.items() if not name.startswith(CONDITION)}
    released = {
        name.removeprefix(CONDITION): value
        for name, value in weights.items()
        if name.startswith(CONDITION)
    }
    condition = model.transformer.condition.adopt(released)
    return others | {CONDITION + name: value for name, value in condition.items()}


# Section `generator` of `params.yaml`.
GeneratorSource = Annotated[TrainedGenerator | ReleasedGenerator, Field(discriminator="source")]
