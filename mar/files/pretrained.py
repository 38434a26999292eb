"""Models of `transformers` in local folders: nothing is downloaded, and no pickle is opened.

config.json          which model, and its sizes
model.safetensors    the weights, or an index and several files
"""
# transformers is typed in part:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mar.files import atomic


UNREADABLE = (
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    TypeError,
    ImportError,
    SafetensorError,
)  # what `transformers` raises of a folder that is not what it must be


def library(*, key: str) -> Any:
    """Return `transformers`, without its progress bars and advice.

    Args:
        key: Of `params.yaml`, for messages.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise ValueError(
            f"{key}: needs the package transformers (pip install 'mar[text]'): {error}"
        ) from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def read(kind: str, folder: Path, *, key: str, called: str = "", **options: Any) -> Any:
    """Return what a class of `transformers` reads from a folder.

    Args:
        kind: The class.
        folder: The folder.
        key: Of `params.yaml`, for messages.
        called: What is read there, for messages; by default the class.
        options: Of its `from_pretrained`.

    Raises:
        ValueError: `transformers` is not installed or cannot read the folder.
    """
    reader = getattr(library(key=key), kind)
    try:
        return reader.from_pretrained(folder, local_files_only=True, **options)
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{key}: {folder} cannot be read as {called or kind}: {reason}") from None


def load_model(kind: str, folder: Path, *, key: str, called: str = "", **options: Any) -> Any:
    """Return the model of a folder, frozen and in evaluation mode.

    The arguments are those of `read`.

    Raises:
        ValueError: as `read`; or weights are missing, which would be random numbers.
    """
    options |= {"use_safetensors": True, "output_loading_info": True}
    model, info = read(kind, folder, key=key, called=called, **options)
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"{key}: {folder} lacks {len(missing)} of the weights of {called or kind}, "
            f"{missing[0]} first"
        )
    return model.requires_grad_(False).eval()


def digest(files: Iterable[Path]) -> str:
    """Return the SHA-256 of the names and contents of files, in their order."""
    listing = [(file.name, atomic.digest(file)) for file in files]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()
