"""Generated scenes are judged by what they show: real ones pass, others' captions fail."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mar.evaluation import scene_detector
from mar.evaluation.classifier import Classifier, new_classifier
from mar.evaluation.geneval import Box, judge
from mar.evaluation.scene_detector import OTHER, detect, learn_digits
from mar.evaluation.scene_prompts import pairs, read_prompt
from mar.evaluation.scene_scores import bounds, score_scenes
from mar.scenes.digits import split_digits
from mar.scenes.grammar import COLORS, NUMBERS, Scene, Task, draw_scene, unseen_pairs
from mar.scenes.render import render
from mar.scenes.wanted import Wanted
from mar.seeds import make_rng


TASKS: tuple[Task, ...] = (
    "single_object",
    "two_object",
    "counting",
    "colors",
    "position",
    "color_attr",
)
TRAIN, HELD_OUT = split_digits()


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return learn_digits(TRAIN)


def real(count: int, side: int = 24) -> tuple[Tensor, list[str]]:
    """Return scenes of digits that the classifier has not learned from, with a caption of each."""
    images: list[Tensor] = []
    captions: list[str] = []
    for index in range(count):
        rng = make_rng("test", index)
        scene = draw_scene(TASKS[index % 6], unseen_pairs(), rng)
        images.append(render(scene, *HELD_OUT, rng, side=side).permute(2, 0, 1))
        captions.append(scene.captions[0])
    return torch.stack(images), captions


@pytest.mark.parametrize("side", [16, 24])
def test_real_scenes_are_near_the_top_and_shuffled_captions_near_the_bottom(
    classifier: Classifier, side: int
) -> None:
    images, captions = real(480, side)
    found = bounds(classifier, images, captions)
    ceiling, floor = found["ceiling"], found["floor"]
    assert ceiling["overall"] > 0.9
    assert min(ceiling["tasks"].values()) > 0.75
    assert ceiling["strict"] > 0.9
    assert floor["overall"] < 0.1
    assert floor["strict"] <= floor["overall"]
    assert set(ceiling["tasks"]) == set(TASKS)


def test_noise_and_black_show_nothing(classifier: Classifier) -> None:
    rng = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (48, 3, 24, 24), generator=rng, dtype=torch.uint8)
    images = torch.cat([torch.zeros_like(noise), noise])
    scores = score_scenes(classifier, images, ["a red seven"] * 96)
    assert scores["overall"] < 0.05
    assert detect(classifier, images[:1]) == [{}]


def test_what_is_bright_and_no_digit_is_seen_by_strict_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def classify(_: Classifier, cells: Tensor) -> Tensor:  # the first lit cell is a seven, the
        return torch.eye(11)[[7, 10][: len(cells)]]  # second no digit

    monkeypatch.setattr(scene_detector, "_classify", classify)
    sure = new_classifier(scene_detector.CLASSIFIER, image_size=12, num_classes=11)
    image = torch.zeros(3, 24, 24, dtype=torch.uint8)
    image[0, 2:10, 2:10] = 255
    asked: Any = read_prompt("a red seven")
    (alone,) = detect(sure, image[None])
    assert judge(asked, alone).strict
    image[:, 14:20, 14:20] = 255
    (found,) = detect(sure, image[None])
    assert set(found) == {"seven", OTHER}
    verdict = judge(asked, found)
    assert (verdict.correct, verdict.strict) == (True, False)


@pytest.mark.parametrize("scale", [1, 2])
def test_colour_and_box_are_those_of_the_pixels(classifier: Classifier, scale: int) -> None:
    image = torch.zeros(3, 24, 24, dtype=torch.uint8)
    seven = HELD_OUT.images[HELD_OUT.labels == 7][0]
    purple = (torch.tensor(COLORS["purple"])[:, None, None] * (seven.double() / 255)).round()
    image[:, 14:22, 2:10] = purple.to(torch.uint8)
    large = image.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    (found,) = detect(classifier, large[None])
    ((name, (detection,)),) = found.items()
    assert (name, detection.color) == ("seven", "purple")
    y, x = (image.amax(dim=0) > 64).nonzero().unbind(1)
    sides = (int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1)
    assert detection.box == Box(*(scale * side for side in sides))


def test_pairs_never_seen_are_scored_apart(classifier: Classifier) -> None:
    digit, color = min(unseen_pairs())
    other = "red" if color != "red" else "blue"
    images = torch.stack(
        [
            render(Scene([digit], [name], [0], ()), *HELD_OUT, make_rng("unseen", index), side=24)
            for index, name in enumerate([color, other])
        ]
    ).permute(0, 3, 1, 2)
    name = NUMBERS[digit]
    scores = score_scenes(classifier, images, [f"a {color} {name}"] * 2)
    assert scores["unseen"] == {"colors": {"share": 0.5, "num": 2}}
    assert "seen" not in scores
    assert (scores["num_judged"], scores["num_not_understood"]) == (2, 0)
    pair = f"a {color} {name} and a {other} {'two' if name != 'two' else 'four'}"
    asked = [pair, f"a {other} {name}", f"a {name}", f"a {color} {name}"]
    scores = score_scenes(classifier, images[[0, 1, 1, 0]], asked)
    assert scores["unseen"] == {
        "color_attr": {"share": 0.0, "num": 1},
        "colors": {"share": 1.0, "num": 1},
    }
    assert scores["seen"] == {"colors": {"share": 1.0, "num": 1}}  # not that without a colour
    scores = score_scenes(classifier, images, [f"a {other} {name}", "a cat"])
    assert "unseen" not in scores
    assert (scores["overall"], scores["num_judged"], scores["num_not_understood"]) == (0.0, 1, 1)


def test_every_caption_of_the_grammar_is_read_and_nothing_else() -> None:
    for index in range(300):
        scene = draw_scene(TASKS[index % 6], set(), make_rng("read", index))
        prompts = [read_prompt(text) for text in scene.captions]
        assert prompts[0] is not None
        assert prompts[0].tag == TASKS[index % 6]
        if len(prompts) == 2:
            assert prompts[1] is not None
            assert prompts[1].tag == "position"
            assert pairs(prompts[1]) == set(zip(scene.digits, scene.colors, strict=True))
    assert read_prompt("  A Red  SEVEN ") == read_prompt("a red seven")
    for text in ("", "seven", "a pink seven", "five sevens", "a seven under a two", "a seven and"):
        assert read_prompt(text) is None, text
    assert read_prompt("a seven and a two.") == read_prompt("a seven and a two")
    eight: Any = read_prompt("a red two above an eight")
    assert eight.include == (Wanted("eight", 1), Wanted("two", 1, "red", ("above", 0)))
    assert read_prompt("an seven") is None


@pytest.mark.parametrize(
    "text", ["a seven and a seven", "a red seven and a blue seven", "a seven above a seven"]
)
def test_two_objects_of_the_same_digit_are_not_understood(text: str) -> None:
    assert read_prompt(text) is None


def test_images_of_odd_sides_and_other_prompts_are_refused(classifier: Classifier) -> None:
    odd = torch.zeros(1, 3, 25, 25, dtype=torch.uint8)
    with pytest.raises(ValueError, match="an even side, got 25 pixels"):
        detect(classifier, odd)
    with pytest.raises(ValueError, match="no prompt is a caption of scenes, as 'a cat'"):
        score_scenes(classifier, odd[:, :, :24, :24], ["a cat"])


def test_a_place_is_that_of_the_first_object() -> None:
    prompt: Any = read_prompt("a seven left of a two")
    assert [wanted.class_name for wanted in prompt.include] == ["two", "seven"]
    assert prompt.include[1].position == ("left of", 0)
    assert not judge(prompt, {}).correct
