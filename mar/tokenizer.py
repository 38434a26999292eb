"""Tokenizers: from images to latents and back."""

from pathlib import Path

from mar import weights
from mar.autoencoder import AutoencoderConfig, AutoencoderKL
from mar.posterior import LatentShape


TokenizerConfig = AutoencoderConfig
Tokenizer = AutoencoderKL


def build(config: TokenizerConfig) -> Tokenizer:
    """Make a tokenizer; its weights are still to be set."""
    return AutoencoderKL(config)


def latent_shape(config: TokenizerConfig, image_size: int) -> LatentShape:
    """Return the shape of the latents of square images.

    Raises:
        ValueError: the image does not divide into latents.
    """
    if image_size % config.stride:
        raise ValueError(
            f"data.image_size: {image_size} pixels do not divide into latents of "
            f"{config.stride} pixels"
        )
    side = image_size // config.stride
    return LatentShape(config.latent_channels, side, side)


def save(path: Path, tokenizer: Tokenizer) -> None:
    """Write a tokenizer in one safetensors file."""
    weights.save(path, tokenizer, {"tokenizer": tokenizer.config.model_dump()})


def load(path: Path) -> Tokenizer:
    """Read what `save` wrote, ready to encode and decode.

    Raises:
        ValueError: the file is not one.
    """
    tensors, description = weights.load(path)
    if not isinstance(description.get("tokenizer"), dict):  # a generator's is a digest
        raise ValueError(f"{path} does not hold a tokenizer")
    tokenizer = build(TokenizerConfig.model_validate(description["tokenizer"]))
    tokenizer.load_state_dict(tensors)
    return tokenizer.requires_grad_(False).eval()
