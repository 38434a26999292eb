"""Models of `transformers` that score images, from local folders; nothing is downloaded."""

from pathlib import Path
from typing import Any

from mar.files import pretrained


FILES = ("*.json", "*.txt", "model*.safetensors")  # settings, tokenizer and weights


def check_folder(folder: Path, *, key: str) -> None:
    """Check that a folder may be one that `transformers` has saved.

    Raises:
        ValueError: it has no `config.json`; the message begins with the key.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{key}: {folder / 'config.json'} is missing, expected a folder that "
                         "transformers has saved")  # fmt: skip


def load_model(kind: str, folder: Path, *, key: str) -> Any:
    """Return the model of a folder, in evaluation mode.

    Args:
        kind: Its class in `transformers`.
        folder: Holds `config.json` and `model.safetensors`.
        key: Of `params.yaml`, for messages.

    Raises:
        ValueError: `transformers` is not installed or cannot read the folder, or weights are
            missing in it.
    """
    check_folder(folder, key=key)
    return pretrained.load_model(kind, folder, key=key)


def load_processor(kind: str, folder: Path, *, key: str) -> Any:
    """Return what prepares images or texts for the model of a folder.

    Raises:
        ValueError: `transformers` is not installed or cannot read the folder.
    """
    check_folder(folder, key=key)
    return pretrained.read(kind, folder, key=key)


def digest(folder: Path) -> str:
    """Return the SHA-256 of the names and contents of a folder's settings, tokenizer and weights.

    It tells models apart whose folders have the same name.
    """
    return pretrained.digest(sorted({file for pattern in FILES for file in folder.glob(pattern)}))
