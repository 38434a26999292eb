"""Folders in which a stage keeps what it needs to go on after it was killed.

A folder belongs to a fingerprint: the stage's parameters and the digests of its inputs and of its
code. A stage continues only its own earlier work, never that of other settings (DVC's `persist`
did, silently).
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from mar import atomic
from stages import params


ROOT = Path("work")


def declaration(stage: str) -> dict[str, Any]:
    """Return what `dvc.yaml` says about a stage."""
    stages = YAML(typ="safe").load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
    if stage not in stages:
        raise ValueError(f"dvc.yaml: {stage} is not a stage{params.suggest(stage, stages)}")
    return stages[stage]


def input_digests(stage: str) -> dict[str, str]:
    """Return the digest of every dependency that `dvc.yaml` lists for a stage.

    A folder that DVC made keeps the digest of `dvc.lock`, so latents and samples are not read
    again; the file beside it that describes it is (`latents.json`), whoever made it.
    """
    made = _recorded_folders()
    return {
        path: (Path(path).is_dir() and made.get(path)) or _content_digest(Path(path))
        for path in declaration(stage).get("deps", [])
    }


def fingerprint(stage: str, inputs: dict[str, str]) -> str:
    """Digest everything that decides a stage's result: parameters, inputs and code."""
    content = params.read()
    sections = {name: content.get(name) for name in declaration(stage).get("params", [])}
    identity = json.dumps([sections, inputs], sort_keys=True, default=str)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


@contextmanager
def exclusive(stage: str) -> Iterator[None]:
    """Hold the stage's lock, so that two processes never share a work folder."""
    path = ROOT / stage / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(
                f"{stage} is already running here as process {file.read().strip() or 'unknown'}"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def open_folder(stage: str, inputs: dict[str, str]) -> Path:
    """Return the work folder of the stage's present fingerprint, made if need be."""
    folder = ROOT / stage / fingerprint(stage, inputs)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def discard(folder: Path) -> list[Path]:
    """Remove the work of a finished stage; return that of other settings, which can still go on."""
    shutil.rmtree(folder)
    return sorted(folder.parent.glob("*/"))


def _recorded_folders() -> dict[str, str]:
    lock = Path("dvc.lock")
    if not lock.is_file():
        return {}
    stages = YAML(typ="safe").load(lock.read_text(encoding="utf-8")).get("stages", {})
    return {
        out["path"]: out["md5"]
        for stage in stages.values()
        for out in stage.get("outs", [])
        if out.get("md5", "").endswith(".dir")
    }


def _content_digest(path: Path) -> str:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        listing = [(str(file.relative_to(path)), atomic.digest(file)) for file in files]
        return hashlib.sha256(json.dumps(listing).encode()).hexdigest()
    if not path.is_file():
        raise ValueError(f"{path} is missing; the stage that makes it has not run")
    return atomic.digest(path)
