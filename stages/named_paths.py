"""Whether the files and folders that `params.yaml` names are there, before hours of work."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mar.config import Config, named_paths
from mar.evaluation.pretrained import check_folder
from stages.stage import root


SCORING = ("reference", "evaluate")  # sections that samples do without


def check_paths(configs: Mapping[str, Any]) -> None:
    """Look for the files and folders of all sections; their content is read by the stages.

    Args:
        configs: All sections, as `check_all` returns them.

    Raises:
        ValueError: some are missing, or folders of models that are not what they must be; the
            message names every key.
    """
    if problems := _find_problems(configs):
        raise ValueError("\n".join(problems))


def check_run(configs: Mapping[str, Any]) -> list[str]:
    """Look for the same files before a run, which may end with samples that are not scored.

    Returns:
        What scores will lack, as warnings.

    Raises:
        ValueError: as `check_paths`, of the other sections.
    """
    needed = {name: config for name, config in configs.items() if name not in SCORING}
    check_paths(needed)
    return _find_problems({name: configs[name] for name in SCORING})


def _find_problems(configs: Mapping[str, Any]) -> list[str]:
    base = root()
    problems: list[str] = []
    for section, config in configs.items():
        if not isinstance(config, Config) or (
            section == "tokenizer_training" and not configs[section].steps
        ):
            continue
        for key, path in named_paths(config, section).items():
            place = base / Path(path).expanduser()
            if not place.exists():
                problems.append(f"{key}: {place} does not exist")
            elif section == "evaluate":
                problems += _problems(lambda key=key, place=place: check_folder(place, key=key))
    if not problems and (text := configs.get("text")) is not None:
        problems += _problems(lambda: text.check_files(base=base))
    return problems


def _problems(check: Callable[[], None]) -> list[str]:
    try:
        check()
    except ValueError as error:
        return [str(error)]
    return []
