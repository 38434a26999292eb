"""GenEval: whether an image shows the objects of its prompt (Ghosh et al., arXiv 2310.11513).

A detector says which objects an image shows, with boxes, scores and colours; the rules here say
whether they are those of the prompt. They are the rules of the published evaluation, on whatever
detector's boxes. Coordinates grow to the right and down.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mar.evaluation.uncertainty import mean_of_groups
from mar.scenes.wanted import Prompt, Relation, Wanted


TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")

SCORE, COUNTING_SCORE = 0.3, 0.9  # a detection must be surer than this (published settings)
MAX_OBJECTS = 16  # of a class in an image (published settings)
SHRUNK = 0.1  # of both sizes together, by which an offset is shortened before it counts


class Box(NamedTuple):
    """The sides of a box, in pixels or in any other unit."""

    left: float
    top: float
    right: float
    bottom: float


class Detection(NamedTuple):
    """An object that a detector found.

    Attributes:
        box: Where it is.
        score: How sure the detector is, 0 to 1.
        color: Its colour, where the detector tells it.
    """

    box: Box
    score: float
    color: str | None = None


Detections = Mapping[str, Sequence[Detection]]  # of an image: by class


class Verdict(NamedTuple):
    """What is said of an image.

    Attributes:
        correct: Whether it shows what GenEval asks for.
        strict: Whether it also shows nothing else: no other object, and not one too many.
        reason: What is missing or too many, if anything is.
    """

    correct: bool
    strict: bool
    reason: str


def surest(detections: Iterable[Detection], least: float) -> list[Detection]:
    """Return the detections of a class that are surer than `least`, the surest first.

    The published evaluation removes no overlapping boxes of a class by default, so neither is that
    done here.
    """
    kept = [detection for detection in detections if detection.score > least]
    return sorted(kept, key=lambda detection: -detection.score)[:MAX_OBJECTS]


def judge(prompt: Prompt, detections: Detections) -> Verdict:
    """Say whether an image shows what its prompt asks for.

    Colours and positions are those of the `count` surest objects of a class alone. An object that
    two entries ask for may be the same one. What is not asked for has the threshold of the other
    tasks in counting too, so that an unsure object more is not overlooked.
    """
    least = COUNTING_SCORE if prompt.tag == "counting" else SCORE
    objects = {name: surest(found, least) for name, found in detections.items()}
    reasons: list[str] = []
    groups: list[list[Detection] | None] = []  # of each entry: its objects, None if it failed
    for wanted in prompt.include:
        group = objects.get(wanted.class_name, [])[: wanted.count]
        reason = _missing(wanted, group) or _misplaced(wanted, group, groups)
        groups.append(None if reason else group)
        reasons += [reason] if reason else []
    for unwanted in prompt.exclude:
        count = len(objects.get(unwanted.class_name, ()))
        if count >= unwanted.count:
            reasons.append(f"{unwanted.class_name}: expected less than {unwanted.count}, {count}")
    correct = not reasons
    surplus = [
        f"{name}: not asked for, or one too many, {len(found)}"
        for name, found in ((name, surest(found, SCORE)) for name, found in detections.items())
        if len(found) > sum(each.count for each in prompt.include if each.class_name == name)
    ]
    return Verdict(correct, correct and not surplus, "; ".join(reasons or surplus))


def relations(box: Box, other: Box) -> set[Relation]:
    """Return how a box lies to another: on a diagonal in two ways, close by in none."""
    offset = [
        (getattr(box, low) + getattr(box, high) - getattr(other, low) - getattr(other, high)) / 2
        for low, high in (("left", "right"), ("top", "bottom"))
    ]
    sizes = [
        abs(box.right - box.left) + abs(other.right - other.left),
        abs(box.bottom - box.top) + abs(other.bottom - other.top),
    ]
    beyond = [max(abs(o) - SHRUNK * s, 0.0) for o, s in zip(offset, sizes, strict=True)]
    if max(beyond) < 1e-3:
        return set()
    distance = math.hypot(*offset)
    found: set[Relation] = set()
    axes: tuple[tuple[Relation, Relation], ...] = (("left of", "right of"), ("above", "below"))
    for along, shortened, (before, after) in zip(offset, beyond, axes, strict=True):
        if shortened / distance > 0.5:
            found.add(before if along < 0 else after)
    return found


class Share(NamedTuple):
    """A share of images, and the standard error of it over prompts.

    Images of one prompt are not independent, so the prompts are what is drawn; None where there is
    but one.
    """

    value: float
    error: float | None

    def report(self, name: str) -> dict[str, float]:
        """Return the share as `name`, and its error, if there is one, as `name_std`."""
        return {name: self.value, **({} if self.error is None else {f"{name}_std": self.error})}


@dataclass(frozen=True)
class Scores:
    """Scores of all images.

    Attributes:
        tasks: The share of correct images of each task.
        overall: The mean over tasks, each of which counts the same: GenEval's score.
        strict: The same of images that show nothing else.
        images: The share of correct images.
        prompts: The share of prompts with a correct image.
    """

    tasks: dict[str, Share]
    overall: Share
    strict: Share
    images: float
    prompts: float

    def report(self) -> dict[str, Any]:
        """Return `overall`, `strict` and `tasks`.

        Their standard errors are `overall_std`, `strict_std` and `tasks_std`, without those that
        there are not.
        """
        spreads = {tag: each.error for tag, each in self.tasks.items() if each.error is not None}
        return {
            **self.overall.report("overall"),
            **self.strict.report("strict"),
            "tasks": {tag: share.value for tag, share in self.tasks.items()},
            **({"tasks_std": spreads} if spreads else {}),
        }


def score(judged: Iterable[tuple[Prompt, Verdict]]) -> Scores:
    """Return the scores of images, each given by its prompt and what was said of it.

    Raises:
        ValueError: there are no images.
    """
    by_prompt: dict[tuple[str, str], list[Verdict]] = {}
    for prompt, verdict in judged:
        by_prompt.setdefault((prompt.tag, prompt.text), []).append(verdict)
    if not by_prompt:
        raise ValueError("no images to score")
    tags = list(dict.fromkeys(tag for tag, _ in by_prompt))
    by_task = {
        tag: [verdicts for (of, _), verdicts in by_prompt.items() if of == tag] for tag in tags
    }
    tasks = {
        tag: Share(*mean_of_groups([[verdict.correct for verdict in one] for one in found]))
        for tag, found in by_task.items()
    }
    strict = [
        Share(*mean_of_groups([[verdict.strict for verdict in one] for one in found]))
        for found in by_task.values()
    ]
    every = [verdict.correct for verdicts in by_prompt.values() for verdict in verdicts]
    solved = [any(verdict.correct for verdict in verdicts) for verdicts in by_prompt.values()]
    return Scores(
        tasks,
        _mean(list(tasks.values())),
        _mean(strict),
        sum(every) / len(every),
        sum(solved) / len(solved),
    )


def _missing(wanted: Wanted, group: Sequence[Detection]) -> str | None:
    """Say what an entry lacks: objects, or their colour."""
    if len(group) < wanted.count:
        return f"{wanted.class_name}: expected {wanted.count} or more, found {len(group)}"
    colors = [str(detection.color) for detection in group]
    if wanted.color is not None and colors.count(wanted.color) < wanted.count:
        return f"{wanted.class_name}: expected {wanted.color}, found {', '.join(colors)}"
    return None


def _misplaced(
    wanted: Wanted, group: Sequence[Detection], groups: Sequence[Sequence[Detection] | None]
) -> str | None:
    """Say which objects of an entry lie wrong; each must lie right to each of the target's."""
    if wanted.position is None:
        return None
    relation, index = wanted.position
    targets = groups[index]
    if targets is None:
        return f"{wanted.class_name}: nothing there to be {relation}"
    for detection in group:
        for target in targets:
            if relation not in (found := relations(detection.box, target.box)):
                where = " and ".join(sorted(found)) or "too close"
                return f"{wanted.class_name}: expected {relation} the other, found {where}"
    return None


def _mean(shares: Sequence[Share]) -> Share:
    errors = [share.error for share in shares if share.error is not None]
    value = sum(share.value for share in shares) / len(shares)
    if len(errors) < len(shares):
        return Share(value, None)
    return Share(value, math.hypot(*errors) / len(shares))
