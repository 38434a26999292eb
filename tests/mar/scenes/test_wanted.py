"""Lines of GenEval's file are read as it writes them, and what is none is refused by its key."""

import json
from typing import Any

import pytest

from mar.scenes.wanted import Prompt


CAT = {"class": "cat", "count": 1}
NUMBER = "count must be a whole number above 0, got"
PLACE = (
    r"position must be one of left of, right of, above, below and the index of an earlier entry, "
    r"got "
)


def test_a_prompt_is_read_as_geneval_writes_it() -> None:
    line = {
        "tag": "position",
        "include": [
            {"class": "dog", "count": 1},
            {"class": "cat", "count": 1, "color": "red", "position": ["right of", 0]},
        ],
        "exclude": [{"class": "cat", "count": 2}],
        "prompt": "a red cat right of a dog",
    }
    assert Prompt.read(json.dumps(line)).metadata() == line


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"tag": None}, "tag must be text, got None"),
        ({"prompt": 3}, "prompt must be text, got 3"),
        ({"include": []}, "include must be a list with objects, got none"),
        ({"include": "cat"}, "include must be a list, got 'cat'"),
        ({"include": ["cat"]}, "an entry of include must be an object, got 'cat'"),
        ({"include": [{"count": 1}]}, "class must be text, got None"),
        ({"include": [{**CAT, "color": 3}]}, "color must be text, got 3"),
        ({"exclude": [{**CAT, "count": True}]}, f"{NUMBER} True"),
        *(
            ({"include": [{**CAT, "count": count}]}, f"{NUMBER} {count!r}")
            for count in (None, True, 1.0, "2", 0, -1)
        ),
        *(
            ({"include": [CAT, CAT, {**CAT, "position": position}]}, PLACE)
            for position in (["left of", True], ["left of", 2], ["left of", -1], ["near", 0], 3)
        ),
    ],
)
def test_another_line_is_refused(changes: dict[str, Any], complaint: str) -> None:
    line = {"tag": "colors", "prompt": "x", "include": [CAT], **changes}
    with pytest.raises(ValueError, match=rf"^{complaint}.*, in {{\"tag\": "):
        Prompt.read(json.dumps(line))


def test_what_is_no_object_is_refused() -> None:
    with pytest.raises(ValueError, match=r'^the line must be an object, got .*, in \["a cat"\]$'):
        Prompt.read('["a cat"]')
    with pytest.raises(ValueError, match=r"^no JSON \(Expecting value: .*\): a cat$"):
        Prompt.read("a cat")
