"""Where a tokenizer's weights are from: trained here, the release, LDM or diffusers.

What opens the files and checks them is `mar.released.reader`, which a stage loads by name: it can
refuse a file, and editing it trains nothing again.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from mar.config import PathText, Sha256, choice
from mar.released import diffusers_names
from mar.released.file import ReleasedFile
from mar.tokenizers.diffusers import DiffusersConfig
from mar.tokenizers.interface import TokenizerSection
from mar.tokenizers.kl import AutoencoderConfig
from mar.tokenizers.ldm import LDMConfig
from mar.tokenizers.registry import TOKENIZERS


class TrainedAutoencoder(AutoencoderConfig):
    """Section `tokenizer` for `kind: kl`, trained here from random weights."""

    source: Literal["trained"] = Field(description="trained here")


class ReleasedAutoencoder(AutoencoderConfig, ReleasedFile):
    """Section `tokenizer` for `kind: kl`, begun with a file of the released layout."""

    is_released: ClassVar[bool] = True

    source: Literal["released"] = Field(description="a file of the released layout")


class LDMFile(LDMConfig, ReleasedFile):
    """Section `tokenizer` for `kind: ldm`."""

    is_released: ClassVar[bool] = True


class DiffusersFolder(DiffusersConfig, ReleasedFile):
    """Section `tokenizer` for `kind: diffusers`."""

    is_released: ClassVar[bool] = True

    path: PathText = Field(
        description="the folder with config.json and diffusion_pytorch_model.safetensors, the "
        "pipeline's folder that has it as `vae`, or a file of weights alone; absolute or from the "
        "repository",
    )
    sha256: Sha256 | None = Field(
        description="SHA-256 of the weights' file; null: whatever the folder holds"
    )


# Section `tokenizer` of `params.yaml`. Kinds that are not here are always trained here.
SOURCES: dict[str, Any] = {
    **{name: kind.config for name, kind in TOKENIZERS.items()},
    "kl": Annotated[TrainedAutoencoder | ReleasedAutoencoder, Field(discriminator="source")],
    "ldm": LDMFile,
    "diffusers": DiffusersFolder,
}
TokenizerSource = Annotated[TokenizerSection, choice(SOURCES)]


def _as_they_are(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return tensors whose names are ours."""
    return {name: tensors[name].float() for name in model.state_dict()}


TRANSLATIONS: dict[str, Callable[[Mapping[str, Tensor], nn.Module], dict[str, Tensor]]] = {
    "kl": _as_they_are,  # our names are LDM's
    "ldm": _as_they_are,
    "diffusers": diffusers_names.to_ours,
}


def to_ours(
    section: TokenizerSection, tensors: Mapping[str, Tensor], model: nn.Module
) -> dict[str, Tensor]:
    """Return the tensors of a file under the names of a tokenizer, as float32.

    Args:
        section: Section `tokenizer`, one of those with a file.
        tensors: What the file holds, found to fit the tokenizer.
        model: The tokenizer.
    """
    return TRANSLATIONS[section.kind](tensors, model)
