"""The weights that a tokenizer's training begins with, where it does not begin at random."""

from pathlib import Path

from torch import Tensor

from mar import diffusers_folder
from mar.diffusers_autoencoder import DiffusersAutoencoder
from mar.tokenizer_interface import Tokenizer


def given_weights(tokenizer: Tokenizer, base: Path) -> dict[str, Tensor] | None:
    """Read the weights that a tokenizer begins with, if it has any to begin with.

    Args:
        tokenizer: What is to be trained, or used as it is.
        base: Where a relative path begins.

    Raises:
        ValueError: they cannot be read, or are not such a tokenizer's.
    """
    if isinstance(tokenizer, DiffusersAutoencoder):
        return diffusers_folder.read(tokenizer.config, tokenizer, base)
    return None
