"""What the folders of splits are called, as people spell it."""

import re
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


def looks_like_split(name: str) -> bool:
    """Tell whether a name is that of a split in this or another spelling: `test_set`, `Train2017`.

    A name with words of its own is none: `test strips`.
    """
    words: list[str] = re.findall(r"[^\W\d_]+", name.casefold())
    words = [word for word in words if not re.fullmatch(FILLERS, word)]
    return len(words) == 1 and ONE_WORD.fullmatch(words[0]) is not None
