"""Which tokenizers there are, a line for each; how they are made, saved and loaded."""

from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import TypeAdapter

from mar.config import choice
from mar.files import weights
from mar.latents.posterior import LatentShape
from mar.tokenizers.detok import DeTok, DeTokConfig
from mar.tokenizers.diffusers import DiffusersAutoencoder, DiffusersConfig
from mar.tokenizers.interface import BaseSection, Tokenizer, TokenizerSection
from mar.tokenizers.kl import AutoencoderConfig, AutoencoderKL
from mar.tokenizers.ldm import LDMAutoencoder, LDMConfig
from mar.tokenizers.pixels import Pixels, PixelsConfig
from mar.tokenizers.vq import VQ, VQConfig


class Kind(NamedTuple):
    """A kind of tokenizer.

    Attributes:
        tokenizer: Made from a config alone.
        config: Section `tokenizer` of `params.yaml`, without what says where weights are from
            (`mar.released.sources` adds that).
    """

    tokenizer: type[Any]  # of Tokenizer; each takes its own config
    config: type[BaseSection]


TOKENIZERS = {
    "kl": Kind(AutoencoderKL, AutoencoderConfig),
    "ldm": Kind(LDMAutoencoder, LDMConfig),
    "diffusers": Kind(DiffusersAutoencoder, DiffusersConfig),
    "vq": Kind(VQ, VQConfig),
    "detok": Kind(DeTok, DeTokConfig),
    "pixels": Kind(Pixels, PixelsConfig),
}

# What a tokenizer's file says of it.
TokenizerConfig = Annotated[
    TokenizerSection, choice({name: kind.config for name, kind in TOKENIZERS.items()})
]


def build_tokenizer(config: TokenizerSection) -> Tokenizer:
    """Make a tokenizer; its weights are still to be set."""
    return TOKENIZERS[config.kind].tokenizer(config)


def latent_shape(config: TokenizerSection, image_size: int) -> LatentShape:
    """Return the shape of the latents of square images.

    Raises:
        ValueError: the image does not divide into latents, or not into as many as it must.
    """
    config.check_image_size(image_size)
    side = image_size // config.stride
    return LatentShape(config.latent_channels, side, side)


def save_tokenizer(path: Path, tokenizer: Tokenizer) -> None:
    """Write a tokenizer in one safetensors file."""
    weights.save(path, tokenizer, {"tokenizer": tokenizer.config.model_dump()})


def load_tokenizer(path: Path) -> Tokenizer:
    """Read what `save_tokenizer` wrote, ready to encode and decode.

    Raises:
        ValueError: the file is not one.
    """
    tensors, description = weights.load(path)
    if not isinstance(description.get("tokenizer"), dict):  # a generator's is a digest
        raise ValueError(f"{path} does not hold a tokenizer")
    adapter: TypeAdapter[TokenizerConfig] = TypeAdapter(TokenizerConfig)
    try:
        config = adapter.validate_python(description["tokenizer"])
    except ValueError as error:
        raise ValueError(f"{path} holds a tokenizer of another version: {error}") from None
    tokenizer = build_tokenizer(config)
    weights.load_into(tokenizer, tensors, path)
    return tokenizer.requires_grad_(False).eval()
