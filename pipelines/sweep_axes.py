"""What a sweep varies: the key of each axis, its values, and the points that they make."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from mar.averaging.power import WIDEST
from pipelines import clone
from stages.params import find


# What is varied, in this order: the key of each axis.
KEYS = {
    "guidance": "sample.guidance_scale",
    "temperature": "sample.head.temperature",
    "diffusion_steps": "sample.head.num_steps",
    "steps": "sample.num_steps",
    "weights": "sample.weights",
}
KEPT = "kept"  # stands for averages of these widths, where the training kept some:
WIDTHS = ("0.05", "0.1", "0.15")

Settings = dict[str, Any]  # by axis


def variant(project: Path, settings: Settings, *, num_images: int, seed: int) -> str:
    """Return the project's `params.yaml` with other settings, and a sample of its own."""
    yaml = YAML()
    yaml.width = 200
    content = yaml.load((project / clone.PARAMS).read_text(encoding="utf-8"))
    changes = {KEYS[axis]: value for axis, value in settings.items()}
    changes |= {"sample.num_images": num_images, "sample.seed": seed}
    for key, value in changes.items():
        *parents, last = key.split(".")
        place = content
        for parent in parents:
            place = place[parent]
        place[last] = value
    text = io.StringIO()
    yaml.dump(content, text)
    return text.getvalue()


def proposal(base: Mapping[str, Any], settings: Settings) -> str:
    """Return the command that takes settings to the long run."""
    changes = [
        f"-S {_quoted(f'{KEYS[axis]}={_shown(value)}')}"
        for axis, value in settings.items()
        if value != get(base, axis)
    ]
    if not changes:
        return "params.yaml has the best settings that were tried: dvc repro"
    return f"dvc exp run {' '.join(changes)}"


def get(base: Mapping[str, Any], axis: str) -> Any:
    """Return what params.yaml says of an axis.

    Raises:
        ValueError: It has no such key.
    """
    found = find(base, KEYS[axis])
    if found is None:
        raise ValueError(f"{axis}: params.yaml has no {KEYS[axis]}; give an empty list")
    return found


def all_weights(base: Mapping[str, Any], texts: Sequence[str]) -> list[Any]:
    """Return values of sample.weights.

    Raises:
        ValueError: One is none, or an average of a training that kept none.
    """
    kept = find(base, "training.averages") is not None
    widths = WIDTHS if kept else ()
    texts = [each for text in texts for each in (widths if text == KEPT else (text,))]
    values = [_weights(text) for text in texts]
    for text, value in zip(texts, values, strict=True):
        if isinstance(value, dict) and not kept:
            raise ValueError(
                f"weights: must be ema or raw, as training.averages is null, got {text!r}"
            )
    return values


def _weights(text: str) -> Any:
    """Return a value of sample.weights: a name, or the average of a relative width or a decay.

    Raises:
        ValueError: It is neither.
    """
    if text in ("ema", "raw"):
        return text
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if 0 < number <= WIDEST:
        return {"width": number}
    if 0.5 <= number < 1:
        return {"decay": number}
    raise ValueError(
        f"weights: must be ema, raw, {KEPT}, a relative width below {WIDEST:.3f} or a decay from "
        f"0.5 on, got {text!r}"
    )


def slug(settings: Settings) -> str:
    """Return settings as a part of an experiment's name."""
    return "-".join(f"{axis[:1]}{_plain(value)}" for axis, value in settings.items())


def _plain(value: Any) -> str:
    return re.sub(r"[^\w.]+", "", _shown(value))


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        ((key, number),) = value.items()
        return f"{{{key}: {number}}}"
    return str(value)


def _quoted(text: str) -> str:
    return f"'{text}'" if "{" in text else text
