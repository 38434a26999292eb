"""What generated scenes show: places and colours by their pixels, digits by a small classifier.

A cell of the 2 x 2 grid that has bright pixels holds an object: its box is around them, its colour
is the one of the six nearest to their mean. Only which digit it is must be learned, from single
digits that scenes of training are made of, so that held-out scenes tell how good the detector is.
It sees cells of 12 pixels: smaller ones get a black border, larger ones are scaled.

Shapes: B images, S side of an image, C cells of several images, H side of a cell.
"""
# torch's tolist has no precise type:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional

from mar.evaluation.classifier import Classifier, ClassifierConfig, new_classifier, train_classifier
from mar.evaluation.geneval import Box, Detection
from mar.scenes.digits import Digits
from mar.scenes.grammar import COLORS, NUMBERS
from mar.scenes.render import DIGIT, LARGEST, places
from mar.seeds import make_rng


CELL = LARGEST // 2  # pixels that the classifier sees
BRIGHT = 64  # of 255: pixels of an object are brighter in one channel
NOTHING = len(NUMBERS)  # the class of what is bright and no digit
OTHER = "something else"  # the name of it, which no prompt asks for
SCRAMBLED = 0.15  # share of the cells to learn from that are of this class
# Part of the benchmark's definition, as GenEval's detector is of its own: scores of two projects
# compare only if the same detector found them.
CLASSIFIER = ClassifierConfig(
    seed=0,
    width=16,
    feature_width=32,
    steps=400,
    batch_size=128,
    lr=3e-3,
    weight_decay=0.05,
    shift=0,
    flip=False,
    noise=20.0,
)


def learn_digits(digits: Digits) -> Classifier:
    """Train a classifier of grey cells: ten digits, and what is none of them."""
    model = new_classifier(CLASSIFIER, image_size=CELL, num_classes=NOTHING + 1)
    for _ in train_classifier(model, draw_cells(digits)):
        pass
    return model


def draw_cells(digits: Digits) -> Iterator[tuple[UInt8[Tensor, "B 3 H H"], Int64[Tensor, " B"]]]:
    """Yield batches of grey cells, a digit in each where scenes have it, or its pixels scrambled.

    Scrambled ones have the light of a digit without its shape.
    """
    count = CLASSIFIER.batch_size
    index = 0
    while True:
        rng = make_rng("cells", CLASSIFIER.seed, index)
        chosen = torch.randint(len(digits.labels), (count,), generator=rng)
        pixels, labels = digits.images[chosen].flatten(1), digits.labels[chosen].clone()
        order = torch.rand(pixels.shape, generator=rng).argsort(dim=1)
        scrambled = torch.rand(count, generator=rng) < SCRAMBLED
        pixels = torch.where(scrambled[:, None], pixels.gather(1, order), pixels)
        labels[scrambled] = NOTHING
        cells = torch.zeros(count, CELL, CELL, dtype=torch.uint8)
        nearest, farthest = places(CELL)
        corners = torch.randint(nearest, farthest + 1, (count, 2), generator=rng).tolist()
        for cell, digit, (y, x) in zip(
            cells, pixels.unflatten(1, (DIGIT, DIGIT)), corners, strict=True
        ):
            cell[y : y + DIGIT, x : x + DIGIT] = digit
        yield cells[:, None].expand(-1, 3, -1, -1), labels
        index += 1


def detect(
    classifier: Classifier, images: UInt8[Tensor, "B 3 S S"]
) -> list[dict[str, list[Detection]]]:
    """Return the objects of each image, by the name of their digit; what is none is `OTHER`.

    Raises:
        ValueError: the images have no middle, as their side is odd.
    """
    side = images.shape[-1]
    if side % 2:
        raise ValueError(f"scenes have 2 x 2 cells, so an even side, got {side} pixels")
    half = side // 2
    cells = images.unflatten(3, (2, half)).unflatten(2, (2, half))  # (B, 3, 2, H, 2, H)
    cells = cells.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)  # (4 B, 3, H, H)
    bright = cells.amax(dim=1) > BRIGHT  # (4 B, H, H)
    lit = bright.flatten(1).any(dim=1).nonzero().flatten()
    found: list[dict[str, list[Detection]]] = [{} for _ in range(len(images))]
    if not len(lit):
        return found
    scores, digits = _classify(classifier, cells[lit]).max(dim=1)
    colors = _colors(cells[lit], bright[lit])
    for index, score, digit, color in zip(
        lit.tolist(), scores.tolist(), digits.tolist(), colors, strict=True
    ):
        image, cell = divmod(index, 4)
        box = _box(bright[index], *(half * part for part in divmod(cell, 2)))
        name = OTHER if digit == NOTHING else NUMBERS[digit]
        found[image].setdefault(name, []).append(Detection(box, score, color))
    return found


@torch.inference_mode()
def _classify(classifier: Classifier, cells: UInt8[Tensor, "C 3 H H"]) -> Float[Tensor, "C K"]:
    """Return the probability of each digit, and of none."""
    grey = cells.amax(dim=1, keepdim=True).float()
    missing = CELL - grey.shape[-1]
    if missing > 0:
        before = missing // 2
        grey = functional.pad(grey, (before, missing - before, before, missing - before))
    elif missing < 0:
        grey = functional.interpolate(grey, (CELL, CELL), mode="area")
    grey = grey.round().to(torch.uint8).expand(-1, 3, -1, -1)
    return torch.cat([classifier(part).logits.softmax(dim=1) for part in grey.split(1024)])


def _colors(cells: UInt8[Tensor, "C 3 H H"], bright: Bool[Tensor, "C H H"]) -> list[str]:
    """Return the colour of each cell's bright pixels, whatever their brightness."""
    weight = bright[:, None].float()
    mean = (cells * weight).sum(dim=(2, 3)) / weight.sum(dim=(2, 3))  # (C, 3)
    hue = mean / mean.amax(dim=1, keepdim=True)
    palette = torch.tensor(list(COLORS.values())) / 255  # (6, 3)
    nearest = (hue[:, None] - palette).abs().sum(dim=2).argmin(dim=1)
    names = list(COLORS)
    return [names[index] for index in nearest.tolist()]


def _box(bright: Bool[Tensor, "H H"], top: int, left: int) -> Box:
    rows, columns = (bright.any(dim=dim).nonzero().flatten() for dim in (1, 0))
    return Box(
        left + int(columns[0]),
        top + int(rows[0]),
        left + int(columns[-1]) + 1,
        top + int(rows[-1]) + 1,
    )
