"""What decides a stage's result, all the way back: its lineage, by which its run is found again.

A fingerprint needs a stage's inputs on the disk. DVC restores outputs without running anything of
ours, so a pipeline asks for the runs of all its stages before their inputs are there: a lineage
digests a stage's code and parameters, and the lineages of the stages that make its inputs. It
begins with the content of what the first stage made of the data.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stages import params, work


PIPELINE, LOCK = Path("dvc.yaml"), Path("dvc.lock")


def declarations(path: Path = PIPELINE) -> dict[str, Any]:
    """Return the stages that `dvc.yaml` declares; none where there is no such file."""
    if not path.is_file():
        return {}
    return params.parse_yaml(path.read_text(encoding="utf-8")).get("stages", {})


def locked(path: Path = LOCK) -> dict[str, Any]:
    """Return what `dvc.lock` says of each stage; nothing where there is no such file."""
    if not path.is_file():
        return {}
    return (params.parse_yaml(path.read_text(encoding="utf-8")) or {}).get("stages", {})


def digests(stages: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, str]:
    """Return the lineage of each stage; none of one whose code or inputs cannot be read yet.

    Args:
        stages: What `dvc.yaml` declares, makers before those that read what they make.
        content: Of `params.yaml`.
    """
    makers = _makers(stages)
    found: dict[str, str] = {}
    for name, stage in stages.items():
        made = _made(stage, makers)
        if made:
            inputs = {path: found.get(maker) for path, maker in made.items()}
            inputs |= {path: _digest(path) for path in stage["deps"] if path not in made}
            values = {key: params.find(content, key) for key in section_names(stage)}
        else:  # it reads the data, and runs each time: what follows depends on what it made alone
            inputs, values = {path: _digest(path) for path in outputs(stage, ["outs"])}, {}
        if None not in inputs.values():
            identity = json.dumps([name, values, inputs], sort_keys=True, default=str)
            found[name] = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return found


def ancestors(name: str, stages: Mapping[str, Any]) -> set[str]:
    """Return the stages on whose outputs a stage depends, by way of others too."""
    makers = _makers(stages)
    found: set[str] = set()
    pending = [name] if name in stages else []
    while pending:
        direct = set(_made(stages[pending.pop()], makers).values())
        pending += direct - found
        found |= direct
    return found


def section_names(stage: Mapping[str, Any]) -> list[str]:
    """Return the sections or keys of `params.yaml` that a stage declares."""
    return [key for key in stage.get("params", []) if isinstance(key, str)]


def belongs(key: str, names: Iterable[str]) -> bool:
    """Whether a dotted key is one of some sections or keys, or within one."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def outputs(
    stage: Mapping[str, Any], kinds: Iterable[str] = ("outs", "metrics", "plots")
) -> list[str]:
    """Return the paths that a stage makes."""
    entries = [entry for kind in kinds for entry in stage.get(kind, [])]
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]


def is_current(name: str, stages: Mapping[str, Any], lock: Mapping[str, Any]) -> bool:
    """Whether the lock's entry of a stage belongs to its present parameters, code and inputs."""
    entry = lock.get(name)
    if not entry:
        return False
    made = {out["path"]: out.get("md5") for other in lock.values() for out in other.get("outs", [])}
    content = params.read()
    recorded = entry.get("params", {}).get(str(params.FILE), {})
    if any(recorded.get(key) != params.find(content, key) for key in section_names(stages[name])):
        return False
    for dep in entry.get("deps", []):
        path = Path(dep["path"])
        if dep["path"] in made:
            if made[dep["path"]] != dep.get("md5"):
                return False
        elif not path.exists() or _md5(path) != dep.get("md5"):
            return False
    metrics = [out for out in entry.get("outs", []) if out["path"].endswith("/metrics.json")]
    return all(
        Path(out["path"]).is_file() and _md5(Path(out["path"])) == out.get("md5") for out in metrics
    )


def _makers(stages: Mapping[str, Any]) -> dict[str, str]:
    """Return the stage that makes each output."""
    return {path: name for name, stage in stages.items() for path in outputs(stage)}


def _made(stage: Mapping[str, Any], makers: Mapping[str, str]) -> dict[str, str]:
    """Return the dependencies that another stage makes, with its name."""
    found: dict[str, str] = {}
    for path in stage.get("deps", []):
        for candidate in (path, *map(str, Path(path).parents)):
            if candidate in makers:
                found[path] = makers[candidate]
                break
    return found


def _digest(path: str) -> str | None:
    try:
        return work.content_digest(Path(path))
    except ValueError:  # not there yet
        return None


def _md5(path: Path) -> str:
    """Return the digest that DVC gives a file, or a folder."""
    if path.is_dir():
        files = sorted(path.rglob("*"), key=lambda file: file.relative_to(path).as_posix())
        listing = [
            {"md5": _md5(file), "relpath": file.relative_to(path).as_posix()}
            for file in files
            if file.is_file() and work.counts(file)
        ]
        return f"{_hash(json.dumps(listing, sort_keys=True).encode())}.dir"
    return _hash(path.read_bytes())


def _hash(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
