"""Scenes show what their captions say, and nothing else."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mar.evaluation.geneval import Box, Detection, Verdict, judge
from mar.scenes.grammar import COLORS, NUMBERS, Scene, draw_scene, plural, unseen_pairs
from mar.scenes.render import places
from mar.scenes.wanted import Prompt, Wanted
from mar.seeds import make_rng
from mar.sources.scenes import ScenesData
from mar.sources.source import Collection, Surroundings


TASKS = ["single_object", "two_object", "counting", "colors", "position", "color_attr"]
UNSEEN = unseen_pairs()


def collect(**changes: Any) -> Collection:
    section = {
        "source": "scenes",
        "image_size": 24,
        "tasks": TASKS,
        "whole_captions": True,
        "reading_order": 0.5,
        "num_train": 60,
        "num_held_out": 12,
        "seed": 0,
    }
    config = ScenesData.model_validate(section | changes)
    return config.collect(Surroundings(Path(), workers=0, max_pixels=1))


def asked(task: str, caption: str) -> Prompt:
    """Read a caption, independently of how it was written."""
    singular = {plural(name): name for name in NUMBERS}
    if task == "counting":
        count, name = caption.split()
        wanted = Wanted(singular[name], NUMBERS.index(count))
        more = Wanted(wanted.class_name, wanted.count + 1)
        return Prompt(task, caption, (wanted,), (more,))
    parts = re.split(r" (and|left of|right of|above|below) ", caption)
    include: list[Wanted] = []
    for part in parts[::2]:
        _, *color, name = part.split()
        include.append(Wanted(name, 1, color[0] if color else None))
    if len(parts) == 3 and parts[1] != "and":
        # GenEval: the second is placed relative to the first.
        first, second = include
        relation: Any = parts[1]
        return Prompt(
            task, caption, (second, Wanted(first.class_name, 1, first.color, (relation, 0)))
        )
    return Prompt(task, caption, tuple(include))


def detections(scene: Scene, image: np.ndarray) -> dict[str, list[Detection]]:
    """Return the box of what is bright in each object's cell, and its colour by its hue."""
    found: dict[str, list[Detection]] = {}
    for digit, cell in zip(scene.digits, scene.cells, strict=True):
        half = len(image) // 2
        y, x = (half * part for part in divmod(cell, 2))
        bright = image[y : y + half, x : x + half].max(axis=2) > 64
        rows, columns = (np.flatnonzero(bright.any(axis=axis)) for axis in (1, 0))
        box = Box(x + columns[0], y + rows[0], x + columns[-1] + 1, y + rows[-1] + 1)
        mean = image[y : y + half, x : x + half][bright].mean(axis=0)
        color = min(
            COLORS, key=lambda name: np.abs(mean / mean.max() - np.array(COLORS[name]) / 255).sum()
        )
        found.setdefault(NUMBERS[digit], []).append(Detection(box, 0.99, color))
    return found


@pytest.mark.parametrize("side", [16, 24])
@pytest.mark.parametrize("task", TASKS)
def test_a_scene_shows_what_its_captions_say_and_nothing_else(task: Any, side: int) -> None:
    collection = collect(tasks=[task], image_size=side)
    half = side // 2
    rows = [row for row in collection.rows if row.split == "train"]
    for index, row in enumerate(rows):
        assert row.image is not None
        assert row.captions is not None
        image = np.array(Image.open(io.BytesIO(row.image)))
        scene = draw_scene(task, UNSEEN, make_rng("scene", 0, "train", index))
        assert scene.captions == row.captions
        lit = {(y // half) * 2 + x // half for y, x in np.argwhere(image.max(axis=2) > 64)}
        assert lit == set(scene.cells)
        found = detections(scene, image)
        for number, caption in enumerate(row.captions):
            tag = task if number == 0 else "position"
            assert judge(asked(tag, caption), found) == Verdict(True, True, ""), caption


def test_tasks_are_equally_frequent_and_captions_fit_eight_slots() -> None:
    collection = collect()
    captions = [row.captions or () for row in collection.rows]
    assert max(len(text.split()) for texts in captions for text in texts) <= 8
    assert sum(len(texts) == 2 for texts in captions) == len(captions) / 3
    words = {word for texts in captions for text in texts for word in text.split()}
    assert {"a", "and", "left", "above"} <= words
    assert collection.count("held_out") == 12


def test_whole_captions_are_left_out_on_request() -> None:
    whole, own = (collect(whole_captions=choice).rows for choice in (True, False))
    for both, one in zip(whole, own, strict=True):
        assert one == both._replace(captions=(both.captions or ())[:1])


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_objects_are_named_in_reading_order_as_often_as_asked(share: float) -> None:
    absent = {"train": UNSEEN, "held_out": set[tuple[int, str]]()}
    tasks: Any = ["two_object", "position", "color_attr"]
    collection = collect(tasks=tasks, reading_order=share, num_train=900, num_held_out=900)
    said: dict[str, list[bool]] = {split + word: [] for split in absent for word in ("", " and")}
    for number, row in enumerate(collection.rows):
        index = number % 900
        rng = make_rng("scene", 0, row.split, index)
        scene = draw_scene(tasks[index % 3], absent[row.split], rng)
        place = {NUMBERS[d]: cell for d, cell in zip(scene.digits, scene.cells, strict=True)}
        for caption in row.captions or ():
            if " and " in caption:
                cells = [place[word] for word in caption.split() if word in place]
                said[row.split + " and"].append(cells[0] < cells[1])
            else:
                said[row.split].append(" left " in caption or " above " in caption)
    for split, expected in (("train", share), ("held_out", 0.5)):
        assert np.mean(said[split]) == pytest.approx(expected, abs=0.1)
        assert np.mean(said[split + " and"]) == pytest.approx(expected, abs=0.1)


def test_scenes_said_in_reading_order_show_what_their_captions_say() -> None:
    tasks: Any = ["position", "color_attr"]
    collection = collect(tasks=tasks, image_size=16, reading_order=0.9, num_train=80)
    for index, row in enumerate(row for row in collection.rows if row.split == "train"):
        assert row.image is not None
        image = np.array(Image.open(io.BytesIO(row.image)))
        rng = make_rng("scene", 0, "train", index)
        scene = draw_scene(tasks[index % 2], UNSEEN, rng, reading_order=0.9)
        assert scene.captions == row.captions
        for caption in scene.captions:
            tag = "color_attr" if " and " in caption else "position"
            verdict = judge(asked(tag, caption), detections(scene, image))
            assert verdict == Verdict(True, True, ""), caption


def test_a_task_named_twice_is_trained_on_twice_as_often_and_asked_for_as_often() -> None:
    collection = collect(tasks=["position", "single_object", "position"], num_train=9)
    of_split = {"train": [0, 0], "held_out": [0, 0]}
    for row in collection.rows:
        of_split[row.split][len(row.captions or ()) == 2] += 1
    assert of_split == {"train": [3, 6], "held_out": [6, 6]}


def test_pairs_that_training_lacks_are_asked_for_by_held_out_captions() -> None:
    collection = collect(tasks=["colors"], num_train=150, num_held_out=150)
    lacking = {f"a {color} {NUMBERS[digit]}" for digit, color in UNSEEN}
    captions: dict[str, set[str]] = {"train": set(), "held_out": set()}
    for row in collection.rows:
        captions[row.split].update(row.captions or ())
    assert not captions["train"] & lacking
    assert captions["held_out"] & lacking


def test_the_same_seed_makes_the_same_scenes() -> None:
    assert collect().rows == collect().rows
    assert collect(seed=1).rows != collect().rows
    few = list(collect(num_train=6).rows)[:6]
    assert few == list(collect().rows)[:6]


def test_digits_fill_cells_of_eight_pixels_and_move_in_larger_ones() -> None:
    assert [places(cell) for cell in (8, 9, 10, 12)] == [(0, 0), (0, 1), (1, 1), (1, 3)]
