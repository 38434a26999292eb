"""What scenes show, and the captions that say it.

A scene is of 2 x 2 cells with at most one object in each: a digit in one of six colours. Its
caption belongs to one of the six tasks of GenEval (arXiv 2310.11513), and no object is in a scene
that its caption does not mention. For each colour, one digit never has it in training: whether a
model draws it when asked tells whether it puts together what it learnt.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from mar.seeds import make_rng


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
# What says the same places with the objects exchanged.
REVERSED = {"right of": "left of", "below": "above"}


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


def unseen_pairs() -> set[tuple[int, str]]:
    """Return the digit and the colour of those that no training scene has: a digit of each colour.

    They belong to the benchmark: they are the same whatever the scenes' seed.
    """
    order = _shuffled(len(NUMBERS), make_rng("unseen", 0))
    return set(zip(order, COLORS, strict=False))


def draw_scene(
    task: Task,
    absent: set[tuple[int, str]],
    rng: torch.Generator,
    *,
    reading_order: float = 0.5,
) -> Scene:
    """Draw a scene with the captions of a task, without some pairs of digit and colour.

    Scenes of two objects with colours or places have a second caption, which says both.

    Args:
        task: Whose captions.
        absent: Pairs that are left out.
        rng: Chooses everything.
        reading_order: Of captions with two objects, the share that names them in the order in
            which one reads (row by row; with a relation: "left of" or "above"); from 0.5.
    """
    count = {"single_object": 1, "colors": 1, "counting": 2 + below(3, rng)}.get(task, 2)
    digits = _shuffled(len(NUMBERS), rng)[:count]
    if task == "counting":
        digits = [digits[0]] * count
    cells = _shuffled(4, rng)[:count]
    colors: list[str] = []
    for digit in digits:
        taken = colors if task == "color_attr" else []
        free = [name for name in COLORS if (digit, name) not in absent and name not in taken]
        colors.append(free[below(len(free), rng)])
    names = [NUMBERS[digit] for digit in digits]
    full = [f"a {color} {name}" for color, name in zip(colors, names, strict=True)]
    captions = _captions(task, names, full, cells, reading_order, rng)
    return Scene(digits, colors, cells, captions)


def _captions(
    task: Task,
    names: Sequence[str],
    full: Sequence[str],
    cells: Sequence[int],
    reading_order: float,
    rng: torch.Generator,
) -> tuple[str, ...]:
    """Return the captions of objects, given their names, and in `full` their names with colours."""
    if task == "counting":
        return (f"{NUMBERS[len(names)]} {plural(names[0])}",)
    if task == "single_object":
        return (f"a {names[0]}",)
    if task == "colors":
        return (full[0],)
    if task == "two_object":
        return (_joined([f"a {name}" for name in names], cells, reading_order, rng),)
    relation, one, other = _related(cells, reading_order, rng)
    whole = f"{full[one]} {relation} {full[other]}"
    if task == "position":
        return f"a {names[one]} {relation} a {names[other]}", whole
    return _joined(full, cells, reading_order, rng), whole


def relations(cell: int, other: int) -> Iterator[str]:
    """Yield how a cell lies to another: on a diagonal in two ways."""
    (row, column), (other_row, other_column) = divmod(cell, 2), divmod(other, 2)
    if column != other_column:
        yield "left of" if column < other_column else "right of"
    if row != other_row:
        yield "above" if row < other_row else "below"


def _related(
    cells: Sequence[int], reading_order: float, rng: torch.Generator
) -> tuple[str, int, int]:
    """Draw how one of two objects lies to the other, and which of them is named first."""
    known = list(relations(*cells))
    relation = known[below(len(known), rng)]
    if relation in REVERSED and _turned(reading_order, rng):
        return REVERSED[relation], 1, 0
    return relation, 0, 1


def _joined(
    objects: Sequence[str], cells: Sequence[int], reading_order: float, rng: torch.Generator
) -> str:
    """Return a caption of two objects without their places, and draw which is named first."""
    one, other = objects
    if cells[0] > cells[1] and _turned(reading_order, rng):
        one, other = other, one
    return f"{one} and {other}"


def _turned(reading_order: float, rng: torch.Generator) -> bool:
    """Draw whether objects against the order of reading are named the other way round."""
    share = 2 * reading_order - 1
    return share > 0 and float(torch.rand((), generator=rng)) < share


def plural(name: str) -> str:
    """Return the plural of a digit's name."""
    return f"{name}es" if name in ("zero", "six") else f"{name}s"


def _shuffled(count: int, rng: torch.Generator) -> list[int]:
    return [int(index) for index in torch.randperm(count, generator=rng)]


def below(count: int, rng: torch.Generator) -> int:
    """Draw a number from 0 to `count` - 1."""
    return int(torch.randint(count, (1,), generator=rng))
