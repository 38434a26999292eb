"""What images are generated of, as a person says it: classes or prompts.

Shapes: B images.
"""

import operator
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from mar.sampling.labels import find_labels
from mar.text.prompts import Prompt, check_prompts, tidy
from stages.weights import Weights


class Given(NamedTuple):
    """What some images are generated of.

    Attributes:
        tokens: What the generator takes: the number of each class, or the tokens of each prompt.
        names: The class or the prompt of each image.
        labels: The number of each class; 0 for each prompt.
        remarks: What of the prompts the generator will not heed.
        prompts: Those of the images; None of classes.
        geneval: The line of GenEval's file that each prompt is from, if all are from such files.
    """

    tokens: Shaped[Tensor, "B ..."]
    names: list[str]
    labels: Int[Tensor, " B"]
    remarks: list[str]
    prompts: list[str] | None = None
    geneval: list[str] | None = None

    def repeat(self, count: int) -> "Given":
        """Return each entry `count` times, side by side."""

        def each(texts: list[str]) -> list[str]:
            return [text for text in texts for _ in range(count)]

        return Given(
            self.tokens.repeat_interleave(count, dim=0),
            each(self.names),
            self.labels.repeat_interleave(count),
            self.remarks,
            self.prompts and each(self.prompts),
            self.geneval and each(self.geneval),
        )


def of_classes(weights: Weights, classes: Sequence[int | str]) -> Given:
    """Return classes, each given by its name or its number.

    Raises:
        ValueError: the generator takes prompts, there is no such class, several have the name, or
            there are none.
    """
    listed = _listed(classes, "names or numbers")
    if weights.mar.text is not None:
        raise ValueError("this generator takes prompts and no classes")
    labels = torch.tensor(find_labels(list(map(_class, listed)), weights.class_names))
    return Given(labels, [weights.class_names[label] for label in labels.tolist()], labels, [])


def of_prompts(weights: Weights, prompts: Sequence[str | Prompt]) -> Given:
    """Return prompts as the generator takes them, white space as one blank each.

    Args:
        weights: The generator.
        prompts: The text of each, or what was read of it.

    Raises:
        ValueError: the generator takes classes, there are no prompts, or nothing is left of one.
    """
    listed = _listed(prompts, "texts")
    if weights.texts is None:
        raise ValueError("this generator takes classes and no prompts")
    if wrong := [prompt for prompt in listed if not isinstance(prompt, str | Prompt)]:
        raise ValueError(f"{wrong[0]!r} is no text")
    asked = [Prompt(tidy(each)) if isinstance(each, str) else each for each in listed]
    texts = [prompt.text for prompt in asked]
    count = weights.mar.config.condition_tokens
    first = {prompt.text: prompt for prompt in reversed(asked)}  # of several alike
    different = list(dict.fromkeys(texts))
    remarks = check_prompts([first[text] for text in different], weights.texts, count)
    tokens = weights.texts.encode(different, count)
    place = {text: number for number, text in enumerate(different)}
    order = [place[text] for text in texts]
    labels = torch.zeros(len(texts), dtype=torch.long)
    lines = [prompt.geneval for prompt in asked if prompt.geneval is not None]
    geneval = lines if len(lines) == len(asked) else None
    return Given(tokens[order], texts, labels, remarks, texts, geneval)


def _listed(given: Any, what: str) -> list[Any]:
    is_list = isinstance(given, Iterable) and not isinstance(given, str)
    if not (listed := list(given) if is_list else []):
        raise ValueError(f"must be a list of {what}, got {given!r}")
    return listed


def _class(given: Any) -> int | str:
    """Return a name or a number, which may be NumPy's.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(given, str | bool):  # of which the latter is refused as a name
        return given
    try:
        return operator.index(given)
    except TypeError:
        raise ValueError(f"{given!r} is neither the name of a class nor a whole number") from None
