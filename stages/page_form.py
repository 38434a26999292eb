"""What the page of `stages.page` offers, and what a person has asked it for.

Shapes: B images, H W an image in pixels.
"""

import base64
import binascii
import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydantic import Field

from mar.config import Config
from stages import params
from stages.conditions import Given
from stages.sampler import Edit, Sampler


MOST = 16  # images at a time

# Names for changes of `sample.head`; a head offers those whose keys and values it has.
MODES: dict[str, dict[str, Any]] = {
    "exact: 100 steps": {"solver": "ancestral", "num_steps": 100, "final_num_steps": None},
    "annealed: 50 to 5 steps (DiSA)": {
        "solver": "ancestral",
        "num_steps": 50,
        "annealing": "linear",
        "final_num_steps": 5,
    },
    "few steps: 10, ancestral": {"solver": "ancestral", "num_steps": 10, "final_num_steps": None},
    "few steps: 10, DPM-Solver++": {
        "solver": "dpm++",
        "num_steps": 10,
        "final_num_steps": None,
        "temperature": 1.0,
    },
    "few steps: 10, DDIM": {
        "solver": "ddim",
        "num_steps": 10,
        "final_num_steps": None,
        "temperature": 1.0,
    },
    "25 steps, Euler": {"solver": "euler", "num_steps": 25, "final_num_steps": None},
    "few steps: 8, Adams-Bashforth": {"solver": "adams", "num_steps": 8, "final_num_steps": None},
    "few steps: 4, midpoint": {"solver": "midpoint", "num_steps": 4, "final_num_steps": None},
}


class Request(Config):
    """What the page sends."""

    label: str | None = Field(min_length=1, description="a class, by name or number")
    prompt: str | None = Field(description="a text, where the generator takes texts")
    num_images: int = Field(gt=0, le=MOST, description="images of it")
    seed: int = Field(ge=0, description="as in section sample")
    guidance_scale: float = Field(description="as in section sample")
    num_steps: int = Field(description="as in section sample")
    reconstruction_steps: int | None = Field(description="as in section sample")
    head: dict[str, Any] = Field(description="keys of section sample.head")
    on_the_way: bool = Field(description="send pictures along the way")
    image: str | None = Field(description="an image to edit: a PNG as a data URL")
    mask: str | None = Field(description="as large, opaque where to draw: a PNG as a data URL")


def describe(sampler: Sampler) -> dict[str, Any]:
    """Return what the page needs to know of a model, ready for JSON."""
    weights, sample = sampler.weights, sampler.weights.sample
    model = weights.mar.config
    any_order = model.attention == "bidirectional" and model.order == "random"
    return {
        "takes_prompts": weights.texts is not None,
        "classes": _class_options(sampler.class_names),
        "image_size": sampler.image_size,
        "num_tokens": weights.mar.num_tokens,
        "fixed_steps": model.attention == "causal",  # token by token
        "guided": model.label_drop > 0,
        "editable": any_order,
        "halves": any_order and sample.order != "confidence",
        "most_images": MOST,
        "seed": sample.seed,
        "guidance_scale": sample.guidance_scale,
        "num_steps": sample.num_steps,
        "reconstruction_steps": sample.reconstruction_steps,
        "device": str(sampler.device),
        "head": _head_fields(sampler),
        "modes": _modes(sampler),
    }


def read_request(content: object) -> Request:
    """Return what the page asks for.

    Raises:
        ValueError: a value is missing or not allowed; the message names it.
    """
    return params.parse("request", content, Request, Path("page"))


def read_given(sampler: Sampler, request: Request) -> Given:
    """Return the class or the prompt of each image to draw.

    Raises:
        ValueError: the generator takes the other of both, there is no such class, or nothing is
            left of the prompt.
    """
    classes, prompts = (
        None if asked is None else [asked] * request.num_images
        for asked in (request.label, request.prompt)
    )
    return sampler.given(classes, prompts)


def read_edit(sampler: Sampler, request: Request) -> Edit | None:
    """Return the image to edit, once for each image to draw.

    Raises:
        ValueError: there is one of image and mask, they are no PNG, or of another size, or nothing
            is painted.
    """
    if request.image is None and request.mask is None:
        return None
    if request.image is None or request.mask is None:
        raise ValueError("an edit needs an image and a mask, got one of them")
    size = sampler.image_size
    image = _read_png(request.image, "the image", size).convert("RGB")
    alpha = np.asarray(_read_png(request.mask, "the mask", size).convert("RGBA"))[:, :, 3]
    if not alpha.any():
        raise ValueError("nothing of the image is painted, so there is nothing to draw")
    images = np.repeat(np.asarray(image)[None], request.num_images, axis=0)
    return sampler.edit(images, alpha > 0)


def _class_options(names: list[str]) -> list[dict[str, str]]:
    """Return what to choose from: names, and where several classes have one, numbers."""
    count = Counter(names)
    return [
        {"value": str(number) if count[name] > 1 else name, "text": f"{number} {name}"}
        for number, name in enumerate(names)
    ]


def _head_fields(sampler: Sampler) -> list[dict[str, Any]]:
    """Return the keys of `sample.head` as the fields of a form, from their schema."""
    head: Any = sampler.weights.sample.head
    schema: dict[str, Any] = type(head).model_json_schema()
    fields: list[dict[str, Any]] = []
    for name, described in schema["properties"].items():
        if name == "kind":
            continue
        types = [described, *described.get("anyOf", []), *described.get("oneOf", [])]
        choices: list[Any] | None = next((kind["enum"] for kind in types if "enum" in kind), None)
        value = getattr(head, name)
        if choices is not None and value not in choices:  # a list, in place of a name
            choices = [*choices, value]
        fields.append(
            {
                "name": name,
                "value": value,
                "description": described.get("description", ""),
                "choices": choices,
                "whole": any(kind.get("type") == "integer" for kind in types),
                "optional": any(kind.get("type") == "null" for kind in types),
            }
        )
    return fields


def _modes(sampler: Sampler) -> list[dict[str, Any]]:
    """Return the ways of sampling that the model's head has, that of its settings first."""
    head: Any = sampler.weights.sample.head
    own: dict[str, Any] = {key: value for key, value in head if key != "kind"}
    found = [{"name": "as the settings say", "head": own}]
    for name, changes in MODES.items():
        try:
            sampler.settings(head=changes)
        except ValueError:
            continue
        found.append({"name": name, "head": own | changes})
    return found


def _read_png(url: str, name: str, size: int) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2], validate=True)))
        if picture.size != (size, size):
            raise ValueError(f"{name} must have {size} x {size} pixels, got {picture.size}")
        picture.load()
    except (binascii.Error, UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{name} is not a PNG: {error}") from None
    return picture
