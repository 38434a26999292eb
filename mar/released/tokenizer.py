"""Where a tokenizer's weights are from: trained here, the release, or diffusers."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from mar.released import diffusers_folder
from mar.released.names import check_tensors
from mar.released.pickles import ReleasedFile, read_tokenizer
from mar.tokenizers.diffusers import DiffusersFolder
from mar.tokenizers.interface import Tokenizer
from mar.tokenizers.kl import AutoencoderConfig
from mar.tokenizers.registry import OwnTokenizerConfig


class TrainedAutoencoder(AutoencoderConfig):
    """Section `tokenizer` for `kind: kl`, trained here from random weights."""

    source: Literal["trained"] = Field(description="trained here")


class ReleasedAutoencoder(AutoencoderConfig, ReleasedFile):
    """Section `tokenizer` for `kind: kl`, begun with a file of the released layout."""

    source: Literal["released"] = Field(description="a file of the released layout")


# Section `tokenizer` of `params.yaml`; only `kind: kl` can be from several sources.
TokenizerSource = Annotated[
    Annotated[TrainedAutoencoder | ReleasedAutoencoder, Field(discriminator="source")]
    | DiffusersFolder
    | OwnTokenizerConfig,
    Field(discriminator="kind"),
]


def released_weights(
    section: TokenizerSource, model: Tokenizer, *, base: Path
) -> dict[str, Tensor] | None:
    """Return what a training begins with if it is a file.

    Args:
        section: Section `tokenizer`.
        model: The tokenizer that it describes.
        base: Where the path of the file begins, if it is relative.

    Raises:
        ValueError: the file is missing, another one, damaged, or its tensors do not fit the model.
    """
    if isinstance(section, DiffusersFolder):
        return diffusers_folder.read(section, model, base)
    if not isinstance(section, ReleasedAutoencoder):
        return None
    path = section.place(base)
    tensors = read_tokenizer(path, section.sha256)
    try:
        check_tensors(model, tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return {name: value.float() for name, value in tensors.items()}
