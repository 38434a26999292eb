"""Classes to generate, by number or by name."""

import difflib
from collections.abc import Sequence
from typing import Literal
from unicodedata import normalize

import torch
from jaxtyping import Int
from torch import Tensor

from mar.seeds import make_rng


def balanced_labels(
    num_images: int, classes: Sequence[int] | None, num_classes: int
) -> Int[Tensor, " B"]:
    """Cycle through classes (None: all), so that every prefix of the images is balanced.

    Raises:
        ValueError: a class does not exist.
    """
    chosen = list(range(num_classes)) if classes is None else list(classes)
    for label in chosen:
        if not 0 <= label < num_classes:
            raise ValueError(
                f"sample.labels: {label} is not a class, they are 0 to {num_classes - 1}"
            )
    return torch.tensor([chosen[index % len(chosen)] for index in range(num_images)])


def labels_as_data(num_images: int, class_counts: Sequence[int], *, seed: int) -> Int[Tensor, " B"]:
    """Return labels as frequent as in the data, to within one image, in a random order.

    So that few samples of long-tailed data are compared with real images of the same classes.

    Args:
        num_images: How many.
        class_counts: Real images of each class.
        seed: Of the order.

    Raises:
        ValueError: there are no real images.
    """
    total = sum(class_counts)
    if not total:
        raise ValueError("sample.labels: as_data needs training images, and there are none")
    each = torch.arange(len(class_counts)).repeat_interleave(torch.tensor(class_counts))
    chosen = each[torch.arange(num_images) * total // num_images]
    return chosen[torch.randperm(num_images, generator=make_rng("labels", seed))]


def resolve_labels(
    classes: Sequence[int | str] | Literal["as_data"] | None, class_names: Sequence[str]
) -> list[int] | None:
    """Return the number of each class of `sample.labels` (None, as_data: all).

    A number counts the classes from 0, in the order of `classes.json`; text is a class's name.
    Where a class is called by another's number, the number alone could mean either, and is refused.

    Raises:
        ValueError: a class does not exist, or it is not clear which is meant.
    """
    if classes is None or classes == "as_data":
        return None
    return [_resolve(chosen, class_names) for chosen in classes]


def labels_called(name: str, class_names: Sequence[str]) -> list[int]:
    """Return the number of each class of that name, however its accents are written in Unicode."""
    wanted = normalize("NFC", name)
    return [label for label, known in enumerate(class_names) if normalize("NFC", known) == wanted]


def find_labels(classes: Sequence[int | str], class_names: Sequence[str]) -> list[int]:
    """Return the number of each class that a person asks for, by its name or by its number.

    Text that is both a name and a number is the name; an integer is always the number.

    Raises:
        ValueError: there is no such class, or several have the name.
    """
    return [_find(given, class_names) for given in classes]


def _find(given: int | str, names: Sequence[str]) -> int:
    found = [] if isinstance(given, int) else labels_called(given, names)
    if len(found) > 1:
        numbers = ", ".join(map(str, found))
        raise ValueError(
            f"{given!r}: several classes have this name, give one of the numbers {numbers}"
        )
    if found:
        return found[0]
    number = str(given)
    if number.isdecimal() and int(number) < len(names):
        return int(number)
    close = difflib.get_close_matches(number, names, n=1)
    hint = f", did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"{given!r} is neither the name of a class{hint} nor a number from 0 to {len(names) - 1}"
    )


def _resolve(chosen: int | str, names: Sequence[str]) -> int:
    if isinstance(chosen, int):
        if chosen >= len(names):
            raise ValueError(
                f"sample.labels: {chosen} is not a class, they are 0 to {len(names) - 1}"
            )
        if str(chosen) in names and names[chosen] != str(chosen):
            raise ValueError(
                f"sample.labels: {chosen} may be the class called '{chosen}', which is number "
                f"{names.index(str(chosen))}, or class number {chosen}, which is called "
                f"{names[chosen]!r}; give the name in quotes"
            )
        return chosen
    places = labels_called(chosen, names)
    if len(places) > 1:
        numbers = ", ".join(str(label) for label in places)
        raise ValueError(
            f"sample.labels: {len(places)} classes are called {chosen!r}; give the number of one: "
            f"{numbers}"
        )
    if not places:
        close = difflib.get_close_matches(chosen, names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"sample.labels: {chosen!r} is not the name of a class{hint}")
    return places[0]
