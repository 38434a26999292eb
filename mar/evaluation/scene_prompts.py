"""Captions of scenes, read as what GenEval asks of an image."""

import re
from typing import cast

from mar.scenes.grammar import COLORS, NUMBERS, Task, plural
from mar.scenes.wanted import RELATIONS, Prompt, Relation, Wanted


OBJECT = rf"(?:a|an(?= eight)) (?:({'|'.join(COLORS)}) )?({'|'.join(NUMBERS)})"
PAIR = re.compile(rf"{OBJECT} (and|{'|'.join(RELATIONS)}) {OBJECT}")
ONE = re.compile(OBJECT)
MANY = re.compile(rf"({'|'.join(NUMBERS[2:5])}) ({'|'.join(map(plural, NUMBERS))})")
SINGULAR = {plural(name): name for name in NUMBERS}


def read_prompt(text: str) -> Prompt | None:
    """Return what a prompt asks for, without regard to capitals; None if the grammar lacks it.

    A sentence with colours and places is of the task `position`, which is then harder. Two objects
    of the same digit are none of the grammar: GenEval's rules would let one object be both.
    """
    plain = " ".join(text.lower().split()).removesuffix(".").rstrip()
    if many := MANY.fullmatch(plain):
        count, name = NUMBERS.index(many[1]), SINGULAR[many[2]]
        return Prompt("counting", plain, (Wanted(name, count),), (Wanted(name, count + 1),))
    if one := ONE.fullmatch(plain):
        task: Task = "colors" if one[1] else "single_object"
        return Prompt(task, plain, (Wanted(one[2], 1, one[1]),))
    if not (pair := PAIR.fullmatch(plain)):
        return None
    color, name, link, other_color, other = pair.groups()
    if name == other:
        return None
    if link == "and":
        task = "color_attr" if color or other_color else "two_object"
        return Prompt(task, plain, (Wanted(name, 1, color), Wanted(other, 1, other_color)))
    # As in GenEval's files, the first object is placed relative to the one that is named last.
    place = (cast(Relation, link), 0)
    return Prompt("position", plain, (Wanted(other, 1, other_color), Wanted(name, 1, color, place)))


def pairs(prompt: Prompt) -> set[tuple[int, str]]:
    """Return the digits whose colour a prompt says, with it."""
    return {
        (NUMBERS.index(wanted.class_name), wanted.color)
        for wanted in prompt.include
        if wanted.color
    }
