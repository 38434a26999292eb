"""Write `params.yaml` from a preset: `python -m stages.presets NAME`.

A preset is a whole file under `presets/`, or an overlay: the key `base` and what differs from that
preset.
"""

import argparse
import io
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from mar.files import atomic
from stages import params


FOLDER = Path("presets")


def names(folder: Path = FOLDER) -> list[str]:
    """Return the names of all presets."""
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def resolve(name: str, folder: Path = FOLDER) -> str:
    """Return a preset as the text of a complete `params.yaml`, with its comments.

    Raises:
        ValueError: there is no such preset, or an overlay changes a key that its base does not
        have.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        hint = params.suggest(name, names(folder))
        raise ValueError(f"{name!r} is not a preset{hint}; they are: {', '.join(names(folder))}")
    text = path.read_text(encoding="utf-8")
    overlay = _yaml().load(text)
    if "base" not in overlay:
        return text
    base = _yaml().load(resolve(overlay.pop("base"), folder))
    _overlay(base, overlay, str(path), "")
    content = io.StringIO()
    _yaml().dump(base, content)
    body = content.getvalue().partition("\n\n")[2]  # without the base's head comment
    return f"{_head(text)}\n\n{_spaced(body)}"


def write(name: str, *, replace: bool = False, target: Path = params.FILE) -> None:
    """Write a preset to `params.yaml`.

    Raises:
        ValueError: there is no such preset, or `params.yaml` has edits that would be lost.
    """
    text = resolve(name)
    if target.is_file() and not replace and not _is_preset(target.read_text(encoding="utf-8")):
        raise ValueError(
            f"{target} has edits, which would be lost: it equals no preset; to drop them, "
            f"say `make preset NAME={name} REPLACE=1`"
        )
    atomic.write_text(target, text)


def _is_preset(text: str) -> bool:
    """Say whether a text is a preset; only those with its head comment are resolved, for time."""
    return any(
        text.startswith(_head((FOLDER / f"{name}.yaml").read_text(encoding="utf-8")))
        and text == resolve(name)
        for name in names()
    )


def _overlay(base: CommentedMap, changes: CommentedMap, path: str, prefix: str) -> None:
    for key, value in changes.items():
        if key not in base:
            raise ValueError(f"{path}: {prefix}{key} is not in its base{params.suggest(key, base)}")
        alternative = isinstance(value, dict) and set(params.CHOICES) & set(value)
        if isinstance(value, CommentedMap) and isinstance(base[key], dict) and not alternative:
            _overlay(base[key], value, path, f"{prefix}{key}.")
        else:
            base[key] = value
            _replace_comment(base, changes, key)


def _replace_comment(base: CommentedMap, changes: CommentedMap, key: str) -> None:
    """Put the overlay's comment, or none, in the place of that about a value which is replaced.

    To ruamel, the empty lines up to the next key are a part of it; they stay.
    """
    token, ours = (content.ca.items.get(key, [None] * 4)[2] for content in (base, changes))
    comment = ours.value.partition("\n")[0] if ours else ""
    if token and (comment or token.value.startswith("#")):
        token.value = f"{comment}\n{token.value.partition(chr(10))[2]}"
        if ours:
            token.start_mark = ours.start_mark
    elif comment:
        ours.value = f"{comment}\n"
        base.ca.items[key] = changes.ca.items[key]


def _spaced(text: str) -> str:
    """Return YAML with one empty line before each section but the first, and no others.

    To ruamel, an empty line belongs to the value before it, and stays or goes with it.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    spaced = [f"\n{line}" if number and line[0].isalpha() else line
              for number, line in enumerate(lines)]  # fmt: skip
    return "\n".join([*spaced, ""])


def _head(text: str) -> str:
    lines = text.splitlines()
    end = next(index for index, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(lines[:end])


def _yaml() -> YAML:
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 200
    yaml.representer.add_representer(type(None), _null)
    return yaml


def _null(representer: Any, value: None) -> Any:
    """Write `null`, where ruamel would write nothing."""
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")


def main() -> None:
    """Read the command line and write the file."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.presets", description="Write params.yaml from a preset."
    )
    parser.add_argument("name", help=f"one of: {', '.join(names())}")
    parser.add_argument("--replace", action="store_true", help="drop edits of params.yaml")
    arguments = parser.parse_args()
    try:
        write(arguments.name, replace=arguments.replace)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(1) from None
    sys.stdout.write(f"params.yaml is now the preset {arguments.name}\n")


if __name__ == "__main__":
    main()
