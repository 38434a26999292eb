"""Objects in photographs by Mask2Former (Cheng et al., arXiv 2112.01527), as GenEval finds them.

What the network says is read as mmdet 2.27 does, which the published evaluation runs: the 100
surest pairs of query and class; a score is the class's probability times the mean of the mask's
sigmoid inside the mask; masks are enlarged before they are cut at 0; boxes end behind their last
pixel. The post-processing of `transformers` differs: it has one class for each query, and drops
overlapping masks. Other weights of the same network find other boxes: a score needs their name.

Shapes: B images, Q queries, L classes and none, h w a mask of the network, H W an image.
"""
# transformers is typed in part:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from mar.evaluation.geneval import SCORE, Box, Detection
from mar.evaluation.pretrained import digest, load_model, load_processor


MOST = 100  # pairs of query and class of an image (mmdet: max_per_image)
# COCO's classes in the order of their numbers, as GenEval's prompts call them (object_names.txt);
# networks of COCO call three of them mouse, remote and keyboard.
CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "computer mouse",
    "tv remote", "computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip


class Segment(NamedTuple):
    """An object that was found.

    Attributes:
        class_name: What it is.
        detection: Its box in pixels and its score.
        mask: Its pixels.
    """

    class_name: str
    detection: Detection
    mask: Bool[Tensor, "H W"]


class Mask2Former:
    """The network of a folder, for instances of COCO's classes."""

    def __init__(self, folder: Path, device: torch.device, *, key: str) -> None:
        """Read a folder; `key` of `params.yaml` names it in messages.

        Raises:
            ValueError: it cannot be read, or is not of COCO's 80 classes.
        """
        self._model: Any = load_model("Mask2FormerForUniversalSegmentation", folder, key=key)
        self._processor: Any = load_processor("Mask2FormerImageProcessor", folder, key=key)
        self._device = device
        self.name, self.sha256 = folder.name, digest(folder)
        self._model.to(device)
        if (count := int(self._model.config.num_labels)) != len(CLASSES):
            raise ValueError(
                f"{key}: {folder} has {count} classes, expected the {len(CLASSES)} of COCO"
            )

    @torch.inference_mode()
    def detect(self, images: UInt8[Tensor, "B 3 H W"]) -> list[list[Segment]]:
        """Return the objects of each image that count for GenEval, the surest first."""
        given = self._processor(images=list(images.cpu()), return_tensors="pt")
        pixels = given["pixel_values"].to(self._device)
        found = self._model(pixel_values=pixels, pixel_mask=given["pixel_mask"].to(self._device))
        inside, size = tuple(pixels.shape[-2:]), tuple(images.shape[-2:])
        return [
            sorted(segments(*logits, inside, size), key=lambda one: -one.detection.score)
            for logits in zip(
                found.class_queries_logits.float(), found.masks_queries_logits.float(), strict=True
            )
        ]


def segments(
    class_logits: Float[Tensor, "Q L"],
    mask_logits: Float[Tensor, "Q h w"],
    inside: tuple[int, ...],
    size: tuple[int, ...],
) -> Iterator[Segment]:
    """Yield what a network found in an image, if it is surer than GenEval asks for.

    Args:
        class_logits: Of each query, the last of no class.
        mask_logits: Of each query.
        inside: Height and width of the image as the network saw it.
        size: Height and width of the image.
    """
    chances = class_logits.softmax(dim=1)[:, :-1]  # (Q, L - 1)
    num_classes = chances.shape[1]
    top = chances.flatten().topk(min(MOST, chances.numel()))
    likely = top.values > SCORE  # a score is at most this
    chosen, values = top.indices[likely], top.values[likely]
    if not len(chosen):
        return
    logits = mask_logits[chosen // num_classes][None]
    for shape in (inside, size):  # of the padded input first, then of the image
        logits = interpolate(logits, shape, mode="bilinear", align_corners=False)
    logits = logits[0]
    masks = logits > 0
    area = masks.sum(dim=(1, 2))
    sure = (logits.sigmoid() * masks).sum(dim=(1, 2)) / (area + 1e-6)
    scores: list[float] = (values * sure).tolist()
    labels: list[int] = (chosen % num_classes).tolist()
    for label, score, mask in zip(labels, scores, masks.cpu(), strict=True):
        if score > SCORE:
            yield Segment(CLASSES[label], Detection(_box(mask), score), mask)


def _box(mask: Bool[Tensor, "H W"]) -> Box:
    """Return the box around a mask, which ends behind its last pixel."""
    rows, columns = (mask.any(dim=dim).nonzero().flatten() for dim in (1, 0))
    return Box(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
