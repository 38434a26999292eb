"""Colours of objects in photographs by CLIP, as GenEval tells them.

An object is cut out by its box, with grey around its mask, and has the colour whose descriptions
are nearest. The published evaluation takes the ViT-L/14 of OpenAI.

Shapes: H W an image, h w a part of it, C colours, E channels of a direction.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from mar.evaluation.clip import Clip
from mar.evaluation.detectors.mask2former import Segment


COLORS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"
)  # fmt: skip
TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}",
             "a photo of a {color} object")  # fmt: skip
AROUND = 0x99  # grey around an object


class ColorNamer:
    """Names the colours of objects."""

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        self._known: dict[str, Float[Tensor, "C E"]] = {}

    def name(self, image: UInt8[Tensor, "3 H W"], objects: Sequence[Segment]) -> list[str]:
        """Return the colour of each object of an image."""
        if not objects:
            return []
        directions = self._clip.images([cut_out(image, each) for each in objects])
        wanted = torch.stack([self._colors(each.class_name) for each in objects])
        nearest = torch.einsum("be,bce->bc", directions, wanted).argmax(dim=1)
        return [COLORS[int(index)] for index in nearest]

    def _colors(self, name: str) -> Float[Tensor, "C E"]:
        """Return the direction of each colour of a class: the mean over its descriptions."""
        if name not in self._known:
            texts = [
                template.format(color=color, name=name)
                for color in COLORS
                for template in TEMPLATES
            ]
            found = self._clip.texts(texts).reshape(len(COLORS), len(TEMPLATES), -1)
            self._known[name] = functional.normalize(found.mean(dim=1), dim=-1)
        return self._known[name]


def cut_out(image: UInt8[Tensor, "3 H W"], found: Segment) -> UInt8[Tensor, "3 h w"]:
    """Return the box of an object, grey where the object is not."""
    left, top, right, bottom = (round(side) for side in found.detection.box)
    mask = found.mask[top:bottom, left:right].to(image.device)
    return image[:, top:bottom, left:right].where(mask, image.new_tensor(AROUND))
