"""Where a generator's weights are from: trained here, or a file of the release."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field
from torch import Tensor

from mar.model.mar import MAR, GeneratorConfig
from mar.released.names import check_tensors, from_released
from mar.released.pickles import ReleasedFile, read_generator
from mar.released.shapes import check_generator, check_layout


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


# Section `generator` of `params.yaml`.
GeneratorSource = Annotated[TrainedGenerator | ReleasedGenerator, Field(discriminator="source")]


class ReleasedWeights(NamedTuple):
    """The weights of a file, under our names.

    Attributes:
        chosen: Those that `weights` names, with which a training and its average begin.
        model: Those trained, which stay beside the chosen ones where no step is taken.
    """

    chosen: Mapping[str, Tensor]
    model: Mapping[str, Tensor]


def released_weights(section: GeneratorSource, model: MAR, *, base: Path) -> ReleasedWeights | None:
    """Return what a training begins with if it is a file.

    Args:
        section: Section `generator`.
        model: The generator that it describes.
        base: Where the path of the file begins, if it is relative.

    Raises:
        ValueError: the file is missing, another one, damaged, or its tensors do not fit the model.
    """
    if not isinstance(section, ReleasedGenerator):
        return None
    check_layout(section)
    path = section.place(base)
    chosen = read_generator(path, section.sha256, which=section.weights)
    trained = chosen if section.weights == "model" else read_generator(path, None, which="model")
    for name, tensors in {section.weights: chosen, "model": trained}.items():
        check_generator(path, tensors, model)
        try:
            check_tensors(model, tensors)
        except ValueError as error:
            raise ValueError(f"{path}: {name}: {error}") from None
    return ReleasedWeights(_ours(chosen), _ours(trained))


def _ours(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.float() for name, value in from_released(tensors).items()}
