"""GenEval's rules: by hand for each, and as the published functions judge the same boxes."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mar.evaluation.geneval import (
    TASKS,
    Box,
    Detection,
    Verdict,
    judge,
    relations,
    score,
    surest,
)
from mar.scenes.wanted import Prompt, Wanted


# From the published functions (its key `source`), which drew their boxes at random.
GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "golden" / "geneval.json").read_text()
)
CAT, DOG = Wanted("cat", 1), Wanted("dog", 1)


def at(x: float, y: float = 0.0, score: float = 0.95, color: str | None = None) -> Detection:
    """Return an object of side 10 around a point."""
    return Detection(Box(x - 5, y - 5, x + 5, y + 5), score, color)


def prompt(*include: Wanted, tag: str = "two_object", exclude: tuple[Wanted, ...] = ()) -> Prompt:
    return Prompt(tag, "a prompt", include, exclude)


def correct(asked: Prompt, **detections: list[Detection]) -> bool:
    return judge(asked, detections).correct


@pytest.mark.parametrize("tag", TASKS)
def test_verdicts_are_those_of_the_published_functions(tag: str) -> None:
    cases = [case for case in GOLDEN["images"] if case["metadata"]["tag"] == tag]
    assert {case["correct"] for case in cases} == {True, False}
    for case in cases:
        found = {
            name: [Detection(Box(*box), score, color) for box, score, color in objects]
            for name, objects in case["objects"].items()
        }
        assert judge(Prompt.parse(case["metadata"]), found).correct == case["correct"], case


def test_relations_are_those_of_the_published_functions() -> None:
    for box, other, expected in GOLDEN["relations"]:
        assert sorted(relations(Box(*box), Box(*other))) == expected


def test_every_object_must_be_there() -> None:
    asked = prompt(CAT, DOG)
    assert correct(asked, cat=[at(0)], dog=[at(50)])
    assert not correct(asked, cat=[at(0)], cow=[at(50)])


def test_a_detection_must_be_surer_than_the_tasks_threshold() -> None:
    assert not correct(prompt(CAT, tag="single_object"), cat=[at(0, score=0.3)])
    assert correct(prompt(CAT, tag="single_object"), cat=[at(0, score=0.31)])
    assert not correct(prompt(CAT, tag="counting"), cat=[at(0, score=0.9)])


def test_a_count_is_reached_and_not_passed() -> None:
    asked = prompt(Wanted("cat", 2), tag="counting", exclude=(Wanted("cat", 3),))
    for count, expected in {1: False, 2: True, 3: False}.items():
        assert correct(asked, cat=[at(20 * place) for place in range(count)]) == expected
    unsure = [at(0), at(20), at(40, score=0.8)]
    assert correct(asked, cat=unsure)


def test_only_the_surest_sixteen_of_a_class_count() -> None:
    found = [at(0, score=0.5 + place / 100) for place in range(20)]
    kept = [detection.score for detection in surest(found, 0.3)]
    assert kept == [pytest.approx(0.69 - place / 100) for place in range(16)]


def test_only_the_surest_object_must_have_the_color() -> None:
    asked = prompt(replace(CAT, color="red"), tag="colors")
    red, blue = at(0, score=0.9, color="red"), at(0, score=0.5, color="blue")
    assert correct(asked, cat=[blue, red])
    assert not correct(asked, cat=[red._replace(score=0.5), blue._replace(score=0.9)])
    assert not correct(asked, cat=[at(0)])


def test_colors_belong_to_their_objects() -> None:
    asked = prompt(replace(CAT, color="red"), replace(DOG, color="blue"), tag="color_attr")
    assert correct(asked, cat=[at(0, color="red")], dog=[at(50, color="blue")])
    assert not correct(asked, cat=[at(0, color="blue")], dog=[at(50, color="red")])


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ((-30, 0), {"left of"}),
        ((30, 0), {"right of"}),
        ((0, -30), {"above"}),
        ((0, 30), {"below"}),
        ((30, 30), {"right of", "below"}),
        ((2, 0), set()),  # a tenth of both sizes together
        # (x - 2) / x passes a half at x = 4.
        ((4.01, 0), {"right of"}),
        ((3.99, 0), set()),
    ],
)
def test_a_relation_is_the_direction_of_the_shortened_offset(
    where: tuple[float, float], expected: set[str]
) -> None:
    assert relations(at(*where).box, at(0).box) == expected


def test_every_object_must_lie_right_to_every_target() -> None:
    asked = prompt(Wanted("cat", 2), Wanted("dog", 1, None, ("left of", 0)), tag="position")
    assert correct(asked, cat=[at(0), at(50)], dog=[at(-50)])
    assert not correct(asked, cat=[at(0), at(50)], dog=[at(25)])
    assert not correct(asked, cat=[at(0)], dog=[at(-50)])


def test_strict_refuses_what_was_not_asked_for() -> None:
    asked = prompt(CAT, DOG)
    both = {"cat": [at(0)], "dog": [at(50)]}
    assert judge(asked, both) == Verdict(True, True, "")
    two = judge(asked, {**both, "cat": [at(0), at(90)]})
    assert (two.correct, two.strict) == (True, False)
    other = judge(asked, {**both, "cow": [at(90)]})
    assert (other.correct, other.strict) == (True, False)
    assert judge(asked, {**both, "cow": [at(90, score=0.2)]}).strict


@pytest.mark.parametrize("name", ["cat", "dog"])
def test_strict_sees_unsure_objects_in_counting_too(name: str) -> None:
    asked = prompt(Wanted("cat", 2), tag="counting", exclude=(Wanted("cat", 3),))
    found = {"cat": [at(0), at(20)]}
    assert judge(asked, found).strict
    more = {**found, name: [*found.get(name, []), at(40, score=0.85)]}
    verdict = judge(asked, more)
    assert (verdict.correct, verdict.strict) == (True, False)


def test_the_overall_score_is_the_mean_of_the_tasks() -> None:
    yes, no = Verdict(True, True, ""), Verdict(False, False, "")
    lax = Verdict(True, False, "")
    a, b = replace(prompt(CAT), text="a"), replace(prompt(CAT), text="b")
    other = prompt(CAT, tag="counting")
    scores = score([(a, yes), (a, no), (b, no), (b, no), (other, lax)])
    assert {tag: share.value for tag, share in scores.tasks.items()} == {
        "two_object": 0.25,
        "counting": 1.0,
    }
    assert scores.overall.value == 0.625
    assert scores.strict.value == 0.125
    assert (scores.images, scores.prompts) == (0.4, 2 / 3)
    # Two prompts of shares 1/2 and 0: their standard deviation, over the square root of two.
    assert scores.tasks["two_object"].error == pytest.approx(math.sqrt(0.125 / 2))
    assert scores.tasks["counting"].error is None
    assert scores.overall.error is None
    with pytest.raises(ValueError, match="no images"):
        score([])


def test_the_error_of_the_overall_score_is_that_of_a_mean() -> None:
    yes, no = Verdict(True, True, ""), Verdict(False, False, "")
    judged = [
        (replace(prompt(CAT, tag=tag), text=text), verdict)
        for tag in ("colors", "position")
        for text, verdict in (("a", yes), ("b", no))
    ]
    scores = score(judged)
    assert scores.overall.error == pytest.approx(math.sqrt(2 * 0.25) / 2)
    report = scores.report()
    assert report["overall_std"] == report["strict_std"] == scores.overall.error
    assert report["tasks_std"] == {"colors": pytest.approx(0.5), "position": pytest.approx(0.5)}
    alone = score(judged[:1]).report()
    assert not {"overall_std", "strict_std", "tasks_std"} & set(alone)
