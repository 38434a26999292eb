"""Read sections of `params.yaml` into strict configs; every mistake names its key."""

import copy
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError


T = TypeVar("T")
ConfigT = TypeVar("ConfigT", bound=BaseModel)

FILE = Path("params.yaml")
CHOICES = ("source", "kind", "extractor")  # keys that say which other keys a section has


def read(path: Path = FILE) -> dict[str, Any]:
    """Return the content of a params file.

    Raises:
        ValueError: there is none, or it is not YAML of sections.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing in {Path.cwd()}")
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {_one_line(error)}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold sections, got {content!r}")
    return content


def parse_yaml(text: str) -> Any:
    """Parse YAML as DVC does (1.2: `1e-4` is a number).

    Parsing is slow, so the last texts are remembered; each call gets its own copy.

    Raises:
        YAMLError: it is not YAML.
    """
    return copy.deepcopy(_parse_yaml(text))


@lru_cache(maxsize=8)
def _parse_yaml(text: str) -> Any:
    return YAML(typ="safe").load(text)


def find(content: Mapping[str, Any], name: str) -> Any:
    """Return what a dotted name stands for (`data.image_size`), or None where it is missing."""
    value: Any = content
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def load(section: str, kind: type[T] | Any, path: Path = FILE) -> T:
    """Return one section of a params file, or one key by its dotted name, as a `kind`.

    Raises:
        ValueError: the section is missing, or a key of it is unknown, missing, or of a wrong type
        or range.
    """
    parent, _, name = section.rpartition(".")
    content = read(path)
    keys = find(content, parent) if parent else content
    if not isinstance(keys, Mapping) or name not in keys:
        hint = suggest(name, keys) if isinstance(keys, Mapping) else ""
        raise ValueError(f"{path}: {section} is missing{hint}")
    return parse(section, keys[name], kind, path)


def load_keys(section: str, kind: type[ConfigT], path: Path = FILE) -> ConfigT:
    """Return those keys of a section of a params file that a `kind` has; others may be there.

    Raises:
        ValueError: the section or a key is missing, or a key is of a wrong type or range.
    """
    content = load(section, dict[str, Any], path)
    return parse(section, {k: v for k, v in content.items() if k in kind.model_fields}, kind, path)


def parse(section: str, value: object, kind: type[T] | Any, path: Path = FILE) -> T:
    """Check a section's value against its config and say all that is wrong with it at once."""
    adapter: TypeAdapter[T] = TypeAdapter(kind)
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        messages = list(_messages(section, value, error))
    raise ValueError("\n".join(f"{path}: {message}" for message in messages))


def check_names(content: Mapping[str, Any], names: Iterable[str], path: Path = FILE) -> None:
    """Refuse unknown and missing sections."""
    expected = set(names)
    unknown = [
        f"{name} is not a section{suggest(name, expected)}"
        for name in content
        if name not in expected
    ]
    missing = [f"{name} is missing" for name in sorted(expected - set(content))]
    if unknown or missing:
        raise ValueError("\n".join(f"{path}: {message}" for message in unknown + missing))


def suggest(name: object, known: Iterable[str]) -> str:
    """Return `; did you mean ...?`, or nothing where no known name is close."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _messages(section: str, value: object, error: ValidationError) -> Iterator[str]:
    problems: list[Any] = error.errors(include_url=False)
    keys = [_key(section, value, problem) for problem in problems]
    missing = [key for key, p in zip(keys, problems, strict=True) if p["type"] == "missing"]
    unknown = [key for key, p in zip(keys, problems, strict=True) if p["type"] == "extra_forbidden"]
    meant = {
        key: _meant(key, missing) or _meant(key, _beside(key, {section: value}, unknown))
        for key in unknown
    }
    for key, problem in zip(keys, problems, strict=True):
        context = problem.get("ctx", {})
        match problem["type"]:
            case "missing":
                if key not in meant.values():  # the message about the misspelt key tells it
                    yield f"{key} is missing"
            case "extra_forbidden":
                hint = meant[key]
                name = f"; did you mean {hint.rpartition('.')[2]!r}?" if hint else ""
                yield f"{key} is not a known key{name}"
            case "union_tag_not_found":
                yield f"{key}.{_bare(context['discriminator'])} is missing"
            case "union_tag_invalid":
                tags = [_bare(tag) for tag in context["expected_tags"].split(", ")]
                hint = suggest(context["tag"], tags)
                expected = " or ".join(repr(tag) for tag in tags)
                name = f"{key}.{_bare(context['discriminator'])}"
                yield f"{name} must be {expected}, got {context['tag']!r}{hint}"
            case "literal_error":
                known = re.findall(r"'([^']*)'", context["expected"])
                hint = suggest(problem["input"], known)
                yield f"{key}: {_reason(problem)}, got {problem['input']!r}{hint}"
            case "model_type":
                yield f"{key} must hold keys of its own, got {problem['input']!r}"
            case _:
                yield f"{key}: {_reason(problem)}, got {problem['input']!r}"


def _reason(problem: dict[str, Any]) -> str:
    reason: str = problem["msg"].removeprefix("Value error, ")
    return f"{reason[:1].lower()}{reason[1:]}"


def _meant(key: str, missing: Iterable[str]) -> str | None:
    """Return the missing key, in the same part of a section, that an unknown one may stand for."""
    parent, _, name = key.rpartition(".")
    siblings = [other.rpartition(".") for other in missing]
    known = [other for before, _, other in siblings if before == parent]
    close = difflib.get_close_matches(name, known, n=1)
    return f"{parent}.{close[0]}" if close else None


def _beside(key: str, content: Mapping[str, Any], unknown: Iterable[str]) -> list[str]:
    """Return the known keys in the same part of a section as an unknown one.

    `dvc exp run -S +sample.guidance_scal=2` adds a misspelt key to the right one.
    """
    parent = key.rpartition(".")[0]
    found = find(content, parent)
    names = [f"{parent}.{name}" for name in found] if isinstance(found, Mapping) else []
    return [name for name in names if name not in unknown]


def _key(section: str, value: object, problem: dict[str, Any]) -> str:
    """Join a location into `section.key`, without the tags that pydantic adds for unions."""
    parts = [section]
    location: tuple[int | str, ...] = problem["loc"]
    tags = _tags(value)
    for index, part in enumerate(location):
        absent = problem["type"] == "missing" and index == len(location) - 1
        if part in tags:  # comes once, before a key that may have the same name
            tags.remove(part)
        elif isinstance(value, dict) and (part in value or absent):
            value = value.get(part)
            tags = _tags(value)
            parts.append(str(part))
        elif isinstance(value, list) and isinstance(part, int):
            value = value[part]
            parts[-1] += f"[{part}]"
    return ".".join(parts)


def _tags(value: object) -> list[object]:
    """Return the choices that a section makes between kinds of itself."""
    return [value[key] for key in CHOICES if key in value] if isinstance(value, dict) else []


def _bare(text: str) -> str:
    """Return a name without quotes, and without the () of a function that finds it."""
    return text.strip("'").removesuffix("()")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
