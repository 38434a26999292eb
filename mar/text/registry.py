"""All text encoders, one line each, and the file in which one is kept."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter

from mar.config import choice
from mar.files import seal
from mar.text.encoder import TextEncoder, TextSection
from mar.text.frozen import FrozenConfig
from mar.text.words import WordsConfig


ENCODERS = {"words": WordsConfig, "transformers": FrozenConfig}  # section `text` of each kind

TextConfig = Annotated[TextSection, choice(ENCODERS)]


def save_encoder(path: Path, section: TextSection | None, encoder: TextEncoder | None) -> None:
    """Write an encoder as JSON; None where there are no texts."""
    described = None if encoder is None else encoder.describe()
    seal.write_json(path, {"section": section and section.model_dump(), "encoder": described})


def load_encoder(path: Path, *, base: Path) -> TextEncoder | None:
    """Read what `save_encoder` wrote.

    Args:
        path: The file.
        base: Where the paths in section `text` begin, if they are relative.

    Raises:
        ValueError: the file is missing, damaged, or another.
    """
    content = seal.read_json(path)
    if not {"section", "encoder"} <= content.keys():
        raise ValueError(f"{path} does not describe a text encoder")
    return None if content["section"] is None else restore_encoder(content, base=base)


def restore_encoder(content: Mapping[str, Any], *, base: Path) -> TextEncoder:
    """Return the encoder that `save_encoder` described.

    Args:
        content: What it wrote.
        base: Where the paths in section `text` begin, if they are relative.

    Raises:
        ValueError: it is not described so.
    """
    adapter: TypeAdapter[TextSection] = TypeAdapter(TextConfig)
    return adapter.validate_python(content["section"]).restore(content["encoder"], base=base)
