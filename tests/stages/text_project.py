"""A tiny project with captions: squares of three colours, whose texts name them."""

from pathlib import Path
from typing import Any

import tiny_project as tiny
from PIL import Image


COLORS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200)}
STAGES = ("prepare", "train_tokenizer", "encode", "encode_text", "train_generator", "sample")


def text_params(**sample: Any) -> dict[str, Any]:
    """Return `params.yaml` with some keys of section `sample` changed."""
    params: dict[str, Any] = tiny.tiny_params()
    params["data"] = {
        "source": "captioned_folder",
        "path": "photos",
        "image_size": 8,
        "captions": {"kind": "text_files"},
        "held_out_fraction": 0.2,
        "max_unreadable": 0,
        "seed": 0,
    }
    params["text"] = {"kind": "words", "min_count": 1}
    params["generator"]["condition_tokens"] = 3
    params["sample"] |= {"num_images": 24, "prompts": ["a red square", "Blue"], **sample}
    return params


def write_photos(project: Path) -> None:
    """Write thirty images and the text beside each."""
    for number in range(30):
        name, color = list(COLORS.items())[number % 3]
        file = project / "photos" / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), color).save(file)
        file.with_suffix(".txt").write_text(f"a {name} square")
