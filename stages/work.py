"""Folders in which a stage keeps what it needs to go on after it was killed.

A folder belongs to a fingerprint: the stage's parameters and the digests of its inputs and of its
code. A stage continues only its own earlier work, never that of other settings (DVC's `persist`
did, silently). It keeps the folder until DVC has recorded its outputs, as DVC removes them where it
was killed before.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml.error import YAMLError

from mar.files import atomic, seal
from mar.files.seal import DamagedFileError
from stages import params
from stages.locks import PATIENCE, locked


ROOT = Path("work")
FINISHED = "finished"  # in a folder: its settings, and how dvc.lock recorded the stage before
RUN_ID = "run_id"  # in a folder: of its MLflow run


def declarations() -> dict[str, Any]:
    """Return what `dvc.yaml` says about each stage."""
    return _read_yaml(Path("dvc.yaml"))["stages"]


def declaration(stage: str) -> dict[str, Any]:
    """Return what `dvc.yaml` says about a stage."""
    stages = declarations()
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
        path: (Path(path).is_dir() and made.get(path)) or content_digest(Path(path))
        for path in declaration(stage).get("deps", [])
    }


def sections(stage: str) -> dict[str, Any]:
    """Return the sections and keys of `params.yaml` that `dvc.yaml` lists for a stage."""
    content = params.read()
    return {name: params.find(content, name) for name in declaration(stage).get("params", [])}


def fingerprint(stage: str, inputs: dict[str, str]) -> str:
    """Digest everything that decides a stage's result: parameters, inputs and code."""
    identity = json.dumps([sections(stage), inputs], sort_keys=True, default=str)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def check_unchanged(stage: str, read: dict[str, Any], inputs: dict[str, str]) -> None:
    """Check that a stage would find now what it found when it began.

    DVC records parameters and dependencies as they are when a command has ended, so it would take
    an edit made meanwhile for what the outputs were made of.

    Args:
        stage: Its name.
        read: The `sections` when it began.
        inputs: The `input_digests` when it began.

    Raises:
        ValueError: a section or an input has changed.
    """
    now, found = sections(stage), input_digests(stage)
    changed = [f"section {name} of {params.FILE}" for name in _differing(read, now)]
    changed += _differing(inputs, found)
    if changed:
        raise ValueError(
            f"{', '.join(changed)} changed while the stage ran, so nothing of it is recorded; undo "
            "the change, and the same command goes on from what is kept"
        )


def _differing(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    return [name for name in {**before, **now} if before.get(name) != now.get(name)]


@contextmanager
def exclusive(stage: str) -> Iterator[None]:
    """Hold the stage's lock, so that two processes never share a work folder.

    Raises:
        ValueError: another process runs the stage.
    """
    with locked(ROOT / stage / "lock", patience=PATIENCE, waiting_for=stage):
        yield


def open_folder(stage: str, inputs: dict[str, str]) -> Path:
    """Return the work folder of the stage's present fingerprint, made if need be."""
    folder = ROOT / stage / fingerprint(stage, inputs)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FINISHED).unlink(missing_ok=True)
    return folder


@contextmanager
def kept_if_begun(folder: Path) -> Iterator[None]:
    """Remove the folder of a stage that fails before it has made anything."""
    try:
        yield
    except BaseException:
        if {path.name for path in folder.iterdir()} <= {RUN_ID}:
            shutil.rmtree(folder)
        raise


def finish(folder: Path) -> list[Path]:
    """End the work of a stage; return that of other settings, which can still go on.

    Below DVC, which has yet to record the outputs, the folder is kept; else it is removed.
    """
    if os.environ.get("DVC_STAGE"):
        stage = folder.parent.name
        state = {"sections": sections(stage), "recorded": _recorded().get(stage)}
        seal.write_json(folder / FINISHED, json.loads(json.dumps(state, default=str)))
    else:
        shutil.rmtree(folder)
    return [other for other in sorted(folder.parent.glob("*/")) if other != folder]


def remove_recorded() -> None:
    """Remove the folders of all stages that DVC has recorded, of their settings, since they
    finished.
    """
    with locked(ROOT / "recorded.lock"):  # stages may start side by side
        recorded = _recorded()
        for marker in sorted(ROOT.glob(f"*/*/{FINISHED}")):
            try:
                before = seal.read_json(marker)
            except DamagedFileError as error:
                sys.stderr.write(f"{error}; {marker.parent} is kept as unfinished work\n")
                marker.unlink()
                continue
            now = json.loads(json.dumps(recorded.get(marker.parent.parent.name), default=str))
            if now is None or now == before["recorded"]:
                continue
            if now.get("params", {}).get(str(params.FILE)) == before["sections"]:
                shutil.rmtree(marker.parent)


def _recorded() -> dict[str, Any]:
    """Return what `dvc.lock` says of each stage."""
    lock = Path("dvc.lock")
    if not lock.is_file():
        return {}
    return _read_yaml(lock).get("stages", {})


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = params.parse_yaml(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold keys and values, got {content!r}")
    return content


def recorded_outputs() -> dict[str, str]:
    """Return the digest of each output, as `dvc.lock` has it; of a folder it ends in `.dir`."""
    return {
        out["path"]: out["md5"]
        for stage in _recorded().values()
        for out in stage.get("outs", [])
        if "md5" in out
    }


def _recorded_folders() -> dict[str, str]:
    return {path: md5 for path, md5 in recorded_outputs().items() if md5.endswith(".dir")}


def content_digest(path: Path) -> str:
    """Return the digest of a file, or of a folder but for what Python compiles into it.

    Raises:
        ValueError: there is neither.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and counts(file))
        listing = [(str(file.relative_to(path)), atomic.digest(file)) for file in files]
        return hashlib.sha256(json.dumps(listing).encode()).hexdigest()
    if not path.is_file():
        raise ValueError(f"{path} is missing; the stage that makes it has not run")
    return atomic.digest(path)


def counts(file: Path) -> bool:
    """Whether a file is what DVC sees too, as `.dvcignore` says."""
    return file.suffix != ".pyc" and "__pycache__" not in file.parts
