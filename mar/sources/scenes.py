"""The data source `scenes`: coloured handwritten digits in places, with captions, for small tests.

A scene is black, of 2 x 2 cells with at most one object in each: a real digit of scikit-learn in
one of six colours. Its caption belongs to one of the six tasks of GenEval (arXiv 2310.11513), and
no object is in a scene that its caption does not mention. For each colour, one digit never has it:
whether a model draws it when asked tells whether it puts together what it learnt.
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from pydantic import Field
from torch import Tensor

from mar.data.manifest import Row, Rows, Split
from mar.seeds import make_rng
from mar.sources.caption_report import caption_remarks
from mar.sources.digits import load_digits
from mar.sources.held_out import hold_out
from mar.sources.source import Collection, DataSource, Surroundings


Task = Literal["single_object", "two_object", "counting", "colors", "position", "color_attr"]

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLORS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "purple": (255, 0, 255),
    "white": (255, 255, 255),
}
SIDE, CELL, DIGIT = 24, 12, 8  # pixels
NEAREST, FARTHEST = 1, 3  # pixels from the corner of its cell to a digit
HELD_OUT_DIGITS = 0.2  # of scikit-learn's, from which held-out scenes are made


class ScenesData(DataSource):
    """Scenes of coloured digits with captions, built in."""

    source: Literal["scenes"] = Field(description="coloured digits in places, built in")
    image_size: int = Field(
        gt=0, le=16_384, description="side to which the images, of 24 pixels, are scaled"
    )
    tasks: list[Task] = Field(
        min_length=1, description="GenEval's tasks whose captions there are, all equally often"
    )
    num_train: int = Field(ge=1, description="scenes to train on")
    num_held_out: int = Field(ge=1, description="scenes of other digits, which are held out")
    seed: int = Field(ge=0, description="chooses digits, colours and places")

    @property
    def has_captions(self) -> bool:
        """All images have captions."""
        return True

    def collect(self, surroundings: Surroundings) -> Collection:
        """Return the scenes as PNG files within the rows."""
        images, labels = load_digits()
        held_out = hold_out(labels, HELD_OUT_DIGITS, self.seed)
        unseen = unseen_pairs(self.seed)
        rows: list[Row] = []
        splits: dict[Split, int] = {"train": self.num_train, "held_out": self.num_held_out}
        for split, count in splits.items():
            usable = held_out if split == "held_out" else ~held_out
            digits = images[usable], labels[usable]
            for index in range(count):
                rng = make_rng("scene", self.seed, split, index)
                scene = draw_scene(self.tasks[index % len(self.tasks)], unseen, rng)
                content = _png(render(scene, *digits, rng))
                sha256 = hashlib.sha256(content).digest()
                path = f"scenes/{split}/{index:06d}"
                row = Row(path, content, 0, len(content), sha256, split, captions=scene.captions)
                rows.append(row)
        collected = Rows.collect(rows)
        return Collection(["scene"], collected, remarks=caption_remarks(collected))


@dataclass(frozen=True)
class Scene:
    """What is where.

    Attributes:
        digits: The digit of each object.
        colors: Its colour.
        cells: Its cell, 0 to 3, row by row.
        captions: Of the scene.
    """

    digits: Sequence[int]
    colors: Sequence[str]
    cells: Sequence[int]
    captions: tuple[str, ...]


def unseen_pairs(seed: int) -> set[tuple[int, str]]:
    """Return the digit and the colour of those that never occur: one digit for each colour."""
    order = _shuffled(len(NUMBERS), make_rng("unseen", seed))
    return set(zip(order, COLORS, strict=False))


def draw_scene(task: Task, unseen: set[tuple[int, str]], rng: torch.Generator) -> Scene:
    """Draw a scene with the captions of a task.

    Scenes of two objects with colours or places have a second caption, which says both.
    """
    count = {"single_object": 1, "colors": 1, "counting": 2 + _below(3, rng)}.get(task, 2)
    digits = _shuffled(len(NUMBERS), rng)[:count]
    if task == "counting":
        digits = [digits[0]] * count
    cells = _shuffled(4, rng)[:count]
    colors: list[str] = []
    for digit in digits:
        taken = colors if task == "color_attr" else []
        free = [name for name in COLORS if (digit, name) not in unseen and name not in taken]
        colors.append(free[_below(len(free), rng)])
    names = [NUMBERS[digit] for digit in digits]
    full = [f"a {color} {name}" for color, name in zip(colors, names, strict=True)]
    if task == "counting":
        captions = (f"{NUMBERS[count]} {plural(names[0])}",)
    elif task == "single_object":
        captions = (f"a {names[0]}",)
    elif task == "colors":
        captions = (full[0],)
    elif task == "two_object":
        captions = (f"a {names[0]} and a {names[1]}",)
    else:
        known = list(relations(*cells))
        relation = known[_below(len(known), rng)]
        plain = f"a {names[0]} {relation} a {names[1]}"
        whole = f"{full[0]} {relation} {full[1]}"
        captions = (plain if task == "position" else f"{full[0]} and {full[1]}", whole)
    return Scene(digits, colors, cells, captions)


def relations(cell: int, other: int) -> Iterator[str]:
    """Yield how a cell lies to another: on a diagonal in two ways."""
    (row, column), (other_row, other_column) = divmod(cell, 2), divmod(other, 2)
    if column != other_column:
        yield "left of" if column < other_column else "right of"
    if row != other_row:
        yield "above" if row < other_row else "below"


def plural(name: str) -> str:
    """Return the plural of a digit's name."""
    return f"{name}es" if name in ("zero", "six") else f"{name}s"


def render(
    scene: Scene,
    images: UInt8[Tensor, "N 8 8"],
    labels: Int64[Tensor, " N"],
    rng: torch.Generator,
) -> UInt8[Tensor, "24 24 3"]:
    """Draw a scene with some of the digits, each at a random place in its cell."""
    canvas = torch.zeros(SIDE, SIDE, 3, dtype=torch.uint8)
    for digit, color, cell in zip(scene.digits, scene.colors, scene.cells, strict=True):
        of_digit = (labels == digit).nonzero().flatten()
        grey = images[of_digit[_below(len(of_digit), rng)]].double() / 255
        colored = (grey[:, :, None] * torch.tensor(COLORS[color])).round().to(torch.uint8)
        y, x = (
            CELL * part + NEAREST + _below(FARTHEST - NEAREST + 1, rng) for part in divmod(cell, 2)
        )
        canvas[y : y + DIGIT, x : x + DIGIT] = colored
    return canvas


def _shuffled(count: int, rng: torch.Generator) -> list[int]:
    return [int(index) for index in torch.randperm(count, generator=rng)]


def _below(count: int, rng: torch.Generator) -> int:
    return int(torch.randint(count, (1,), generator=rng))


def _png(image: UInt8[Tensor, "24 24 3"]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image.numpy()).save(file, "PNG")
    return file.getvalue()
