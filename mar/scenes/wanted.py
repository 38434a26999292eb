"""What an image of a prompt must show, as GenEval's files say it (Ghosh et al., arXiv 2310.11513).

A line of `evaluation_metadata.jsonl` is a JSON object:
`{"tag": "counting", "include": [{"class": "dog", "count": 2}], "exclude": [...], "prompt": "..."}`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args


Relation = Literal["left of", "right of", "above", "below"]
RELATIONS = get_args(Relation)


@dataclass(frozen=True)
class Wanted:
    """Objects of one class that a prompt asks for.

    Attributes:
        class_name: What they are.
        count: At least how many there must be.
        color: Their colour, if the prompt says one.
        position: How they lie to an earlier entry of the prompt's objects, and its index.
    """

    class_name: str
    count: int
    color: str | None = None
    position: tuple[Relation, int] | None = None


@dataclass(frozen=True)
class Prompt:
    """A prompt and what its image must show.

    Attributes:
        tag: Its task.
        text: The prompt itself.
        include: Objects that must be there.
        exclude: Numbers of objects of a class that must not be reached.
    """

    tag: str
    text: str
    include: tuple[Wanted, ...]
    exclude: tuple[Wanted, ...] = ()

    @classmethod
    def read(cls, line: str) -> "Prompt":
        """Read a line of GenEval's file.

        Raises:
            ValueError: it is no JSON, or what `parse` raises.
        """
        try:
            described = json.loads(line)
        except ValueError as error:
            raise ValueError(f"no JSON ({error}): {line.strip()}") from None
        return cls.parse(described)

    @classmethod
    def parse(cls, described: object) -> "Prompt":
        """Read what a line of GenEval's file describes.

        Raises:
            ValueError: a key is missing or not what it is there.
        """
        try:
            keys = _object(described, "the line")
            include, exclude = (_entries(keys, key) for key in ("include", "exclude"))
            if not include:
                raise ValueError("include must be a list with objects, got none")
            return cls(_text(keys, "tag"), _text(keys, "prompt"), include, exclude)
        except ValueError as error:
            raise ValueError(f"{error}, in {json.dumps(described, ensure_ascii=False)}") from None

    def metadata(self) -> dict[str, Any]:
        """Return the prompt as GenEval's files describe one."""
        described: dict[str, Any] = {"tag": self.tag}
        for key in ("include", "exclude"):
            if entries := cast(tuple[Wanted, ...], getattr(self, key)):
                described[key] = [_describe(wanted) for wanted in entries]
        return {**described, "prompt": self.text}


def _entries(keys: Mapping[str, Any], key: str) -> tuple[Wanted, ...]:
    entries: Any = keys.get(key, [])
    if not isinstance(entries, list):
        raise ValueError(f"{key} must be a list, got {entries!r}")
    listed = cast(list[object], entries)
    return tuple(_wanted(entry, key, place) for place, entry in enumerate(listed))


def _wanted(described: object, key: str, place: int) -> Wanted:
    """Read an entry, which is number `place` of the list `key`."""
    keys = _object(described, f"an entry of {key}")
    position = keys.get("position")
    if position is not None:
        position = _position(position, place)
    count: Any = keys.get("count")
    if not _is_whole(count) or count < 1:
        raise ValueError(f"count must be a whole number above 0, got {count!r}")
    color = None if keys.get("color") is None else _text(keys, "color")
    return Wanted(_text(keys, "class"), count, color, position)


def _position(described: Any, place: int) -> tuple[Relation, int]:
    if isinstance(described, list) and len(cast(list[Any], described)) == 2:
        relation, target = cast(list[Any], described)
        if relation in RELATIONS and _is_whole(target) and 0 <= target < place:
            return relation, target
    expected = f"one of {', '.join(RELATIONS)} and the index of an earlier entry"
    raise ValueError(f"position must be {expected}, got {described!r}")


def _object(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object, got {value!r}")
    return cast(dict[str, Any], value)


def _text(keys: Mapping[str, Any], key: str) -> str:
    value: Any = keys.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{key} must be text, got {value!r}")
    return value


def _is_whole(value: object) -> bool:
    """Return whether a value of a JSON file is a whole number; Python counts True among them."""
    return isinstance(value, int) and not isinstance(value, bool)


def _describe(wanted: Wanted) -> dict[str, Any]:
    described: dict[str, Any] = {"class": wanted.class_name, "count": wanted.count}
    if wanted.color is not None:
        described["color"] = wanted.color
    if wanted.position is not None:
        described["position"] = list(wanted.position)
    return described
