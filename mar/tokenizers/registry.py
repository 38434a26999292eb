"""Tokenizers of all kinds: made from their section, saved, and loaded."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from mar.files import weights
from mar.latents.posterior import LatentShape
from mar.tokenizers.detok import DeTok, DeTokConfig
from mar.tokenizers.diffusers import DiffusersAutoencoder, DiffusersConfig
from mar.tokenizers.interface import Tokenizer, TokenizerSection
from mar.tokenizers.kl import AutoencoderConfig, AutoencoderKL
from mar.tokenizers.pixels import Pixels, PixelsConfig
from mar.tokenizers.vq import VQ, VQConfig


# Kinds whose weights are never a file that others made.
OwnTokenizerConfig = VQConfig | DeTokConfig | PixelsConfig
# Section `tokenizer` of `params.yaml`, wherever the weights are from.
TokenizerConfig = Annotated[
    AutoencoderConfig | DiffusersConfig | OwnTokenizerConfig, Field(discriminator="kind")
]


def build_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """Make a tokenizer; its weights are still to be set."""
    match config:
        case AutoencoderConfig():
            return AutoencoderKL(config)
        case VQConfig():
            return VQ(config)
        case DeTokConfig():
            return DeTok(config)
        case DiffusersConfig():
            return DiffusersAutoencoder(config)
        case PixelsConfig():
            return Pixels(config)


def latent_shape(config: TokenizerSection, image_size: int) -> LatentShape:
    """Return the shape of the latents of square images.

    Raises:
        ValueError: the image does not divide into latents, or not into as many as it must.
    """
    if isinstance(config, DeTokConfig) and image_size != config.grid * config.stride:
        raise ValueError(
            f"data.image_size: {image_size} pixels are not the {config.grid} latents of "
            f"{config.stride} pixels of tokenizer.grid and tokenizer.patch_size"
        )
    if image_size % config.stride:
        raise ValueError(
            f"data.image_size: {image_size} pixels do not divide into latents of "
            f"{config.stride} pixels"
        )
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
