"""Which keys of `params.yaml` differ from those that are committed: what a run is known by."""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from ruamel.yaml.error import YAMLError

from stages import git, params


ABSENT = object()  # the value of a key that is not there


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values under dotted names."""
    return dict(_leaves(values, ""))


def committed() -> dict[str, Any] | None:
    """Return the committed params, under dotted names; none where git knows of none.

    In an experiment these are those of the commit that it starts from.
    """
    revision = os.environ.get("DVC_EXP_BASELINE_REV") or "HEAD"
    text = git.run("show", f"{revision}:./{params.FILE}")
    try:
        content = params.parse_yaml(text)
    except YAMLError:
        return None
    return flatten(content) if isinstance(content, dict) else None


def current() -> dict[str, Any]:
    """Return the present params under dotted names; nothing where they cannot be read."""
    try:
        return flatten(params.read())
    except (ValueError, OSError):
        return {}


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys whose values differ, with their present value (`ABSENT` of a removed key)."""
    keys = {**now, **before}
    changed = {key: now.get(key, ABSENT) for key in keys}
    return {key: value for key, value in changed.items() if value != before.get(key, ABSENT)}


def describe(changed: Mapping[str, Any], most: int = 3) -> str:
    """Return `key=value, ...` in a line; of more than `most` keys the first ones and a count."""
    shown = list(changed.items()) if len(changed) <= most else list(changed.items())[: most - 1]
    parts = [assignment(key, value) for key, value in shown]
    if rest := len(changed) - len(shown):
        parts.append(f"{rest} more keys")
    return ", ".join(parts)


def assignment(key: str, value: object) -> str:
    """Return `key=value`, or that the key was removed."""
    return f"{key} removed" if value is ABSENT else f"{key}={show(value)}"


def show(value: object, width: int = 40) -> str:
    """Return a value as a person would type it, cut to a width."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= width else f"{text[: width - 3]}..."


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
