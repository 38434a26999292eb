"""The whole model as one file, which says what it is and which tokenizer its latents are of."""

import re
from dataclasses import asdict
from pathlib import Path

from mar.files import weights
from mar.latents.posterior import LatentShape
from mar.model.conditions import TextShape
from mar.model.mar import CONDITION, MAR, GeneratorConfig


def save_mar(path: Path, model: MAR, tokenizer: str) -> None:
    """Write a model as one safetensors file, with the digest of the tokenizer of its latents."""
    description = {
        "generator": model.config.model_dump(),
        "latent": asdict(model.latent),
        "num_classes": model.num_classes,
        "text": model.text and asdict(model.text),
        "codebook_size": model.codebook_size,
        "tokenizer": tokenizer,
    }
    weights.save(path, model, description)


def load_mar(path: Path, tokenizer: str) -> MAR:
    """Read what `save_mar` wrote, ready to generate.

    Raises:
        ValueError: the file is not one, or its latents are those of another tokenizer.
    """
    tensors, description = weights.load(path)
    if "generator" not in description:
        raise ValueError(f"{path} does not hold a generator")
    if description["tokenizer"] != tokenizer:
        raise ValueError(
            f"{path} was trained on latents of tokenizer {description['tokenizer'][:12]}, "
            f"got tokenizer {tokenizer[:12]}"
        )
    try:
        config = GeneratorConfig.model_validate(description["generator"])
    except ValueError as error:
        raise ValueError(f"{path} holds a generator of another version: {error}") from None
    latent = LatentShape(**description["latent"])
    sizes = (description["num_classes"], description["codebook_size"])
    text = description.get("text")  # absent in files from before there was any
    model = MAR(config, latent, *sizes, text=text and TextShape(**text))
    tensors = {_moved(name): value for name, value in tensors.items()}
    weights.load_into(model, tensors, path)
    return model.requires_grad_(False).eval()


def _moved(name: str) -> str:
    """Return where a tensor is today, which a file may hold under an earlier name."""
    return re.sub(r"^transformer\.(?=class_embedding|null_embedding)", CONDITION, name)
