"""What the folders of splits are called, as people spell it."""

import re
from collections.abc import Iterable
from typing import Literal


Role = Literal["train", "held_out", "test"]

NAMES: dict[str, Role] = {
    "train": "train",
    "training": "train",
    "val": "held_out",
    "valid": "held_out",
    "validation": "held_out",
    "dev": "held_out",
    "test": "test",
    "testing": "test",
}
OTHER_NAMES = "eval|evaluation|holdout"  # of splits, without a meaning that all agree on
FILLERS = "sets?|data|datasets?|images?|imgs?|pics?|photos?|files?|folders?|splits?|subsets?"
ONE_WORD = re.compile(rf"({'|'.join(NAMES)}|{OTHER_NAMES})({FILLERS})?")


def role(name: str) -> Role | None:
    """Return what a folder of this name holds, in capitals or not, if it is a split."""
    return NAMES.get(name.casefold())


def like_splits(names: Iterable[str]) -> list[str]:
    """Return the names that are those of splits, in this or another spelling.

    `test_set` and `Train2017` are. `test strips` is not, as it has another word. Names that have
    the same other words, and different words for a split, are: `seg_train` and `seg_test`.
    """
    others: dict[tuple[str, ...], list[tuple[str, str]]] = {}  # -> the word for a split, the name
    for name in names:
        words: list[str] = re.findall(r"[^\W\d_]+", name.casefold())
        words = [word for word in words if not re.fullmatch(FILLERS, word)]
        of_split = [word for word in words if ONE_WORD.fullmatch(word)]
        if len(of_split) == 1:
            words.remove(of_split[0])
            others.setdefault(tuple(words), []).append((of_split[0], name))
    return sorted(
        name
        for words, found in others.items()
        if not words or len({split for split, _ in found}) > 1
        for _, name in found
    )
