"""Scores of generated scenes by GenEval's rules, between a floor and a ceiling.

The ceiling is what real scenes with their own captions reach, which no detector sees perfectly; the
floor is what the same scenes reach with the captions of others.

Shapes: B images, S side of an image.
"""
# torch's tolist has no precise type:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from mar.evaluation.classifier import Classifier
from mar.evaluation.geneval import Verdict, judge, score
from mar.evaluation.scene_detector import detect
from mar.evaluation.scene_prompts import pairs, read_prompt
from mar.scenes.grammar import unseen_pairs
from mar.scenes.wanted import Prompt
from mar.seeds import make_rng


def score_scenes(
    classifier: Classifier, images: UInt8[Tensor, "B 3 S S"], prompts: Sequence[str]
) -> dict[str, Any]:
    """Return what share of the scenes shows what was asked for.

    Args:
        classifier: Tells digits apart.
        images: Generated scenes.
        prompts: Of each.

    Returns:
        `overall`, the mean over tasks; `strict`, the mean for scenes that show nothing else;
        `tasks`, by their names; `overall_std`, `strict_std` and `tasks_std`, their standard errors
        over prompts, where there are two or more (of each task); `unseen`, of prompts that ask for
        a pair of digit and colour that no scene of training has, and `seen`, of other prompts with
        a colour, where there are any: by task, `share` of `num` images, and `share_std`;
        `num_judged`, and `num_not_understood`, images whose prompt is no caption of scenes.

    Raises:
        ValueError: no prompt is a caption of scenes.
    """
    asked = [read_prompt(text) for text in prompts]
    judged = [
        (prompt, judge(prompt, found))
        for prompt, found in zip(asked, detect(classifier, images), strict=True)
        if prompt is not None
    ]
    if not judged:
        raise ValueError(f"no prompt is a caption of scenes, as {prompts[0]!r}")
    unseen = unseen_pairs()
    colored = [(prompt, verdict) for prompt, verdict in judged if pairs(prompt)]
    groups = {
        "seen": [each for each in colored if not pairs(each[0]) & unseen],
        "unseen": [each for each in colored if pairs(each[0]) & unseen],
    }
    return {
        **score(judged).report(),
        **{name: _by_task(group) for name, group in groups.items() if group},
        "num_judged": len(judged),
        "num_not_understood": len(prompts) - len(judged),
    }


def bounds(
    classifier: Classifier, images: UInt8[Tensor, "B 3 S S"], captions: Sequence[str]
) -> dict[str, Any]:
    """Return the scores of real scenes with their captions, and with those of others.

    Returns:
        `ceiling` and `floor`, each with `overall`, `strict` and `tasks` as `score_scenes` has them.
    """
    order: list[int] = torch.randperm(len(captions), generator=make_rng("pairing", 0)).tolist()
    others: list[str] = [captions[index] for index in order]
    found = {
        "ceiling": score_scenes(classifier, images, captions),
        "floor": score_scenes(classifier, images, others),
    }
    kept = ("overall", "strict", "tasks")
    return {name: {key: scores[key] for key in kept} for name, scores in found.items()}


def _by_task(judged: Sequence[tuple[Prompt, Verdict]]) -> dict[str, dict[str, float]]:
    """Return the share of correct images of each task, its error, and the number of images."""
    counts = Counter(prompt.tag for prompt, _ in judged)
    return {
        tag: {**share.report("share"), "num": counts[tag]}
        for tag, share in score(judged).tasks.items()
    }
