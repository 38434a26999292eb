"""Models of `transformers` that score images, from local folders; nothing is downloaded."""
# transformers is typed in part:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mar.files import atomic


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
    model, info = _read(kind, folder, key, use_safetensors=True, output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"{key}: {folder} lacks {len(missing)} of the weights of {kind}, {missing[0]} first"
        )
    return model.requires_grad_(False).eval()


def load_processor(kind: str, folder: Path, *, key: str) -> Any:
    """Return what prepares images or texts for the model of a folder.

    Raises:
        ValueError: `transformers` is not installed or cannot read the folder.
    """
    return _read(kind, folder, key)


def digest(folder: Path) -> str:
    """Return the SHA-256 of the names and contents of a folder's settings, tokenizer and weights.

    It tells models apart whose folders have the same name.
    """
    files = sorted({file for pattern in FILES for file in folder.glob(pattern)})
    listing = [(file.name, atomic.digest(file)) for file in files]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def _read(kind: str, folder: Path, key: str, **options: Any) -> Any:
    check_folder(folder, key=key)
    try:
        import transformers
    except ImportError as error:
        raise ValueError(f"{key}: needs the package transformers: {error}") from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        return getattr(transformers, kind).from_pretrained(folder, local_files_only=True, **options)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError,
            SafetensorError) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{key}: {folder} cannot be read as {kind}: {reason}") from None
