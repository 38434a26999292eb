"""What the stages of one pipeline say or try once, though each is a process of its own."""

import hashlib
import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from stages.stage import root


def pipeline_key() -> str:
    """Return what the stages of one pipeline run share: the flow's key, or the `dvc` above."""
    if chosen := os.environ.get("MAR_PIPELINE"):
        return chosen
    parent = os.getppid()
    try:
        started = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:  # no /proc: a process number alone may be used again one day
        started = "0"
    return f"{os.uname().nodename}-{parent}-{started}"


def say(line: str) -> None:
    """Say something, unless an earlier stage of this pipeline has said it."""
    said = _read()
    mark = hashlib.sha256(line.encode()).hexdigest()[:16]
    if mark not in said:
        sys.stderr.write(f"{line}\n")
        _write({**said, mark: time.time()})


def remember_failure() -> None:
    """Let the stages that follow know that there is no connection now."""
    _write({**_read(), "failed": time.time()})


def forget_failure() -> None:
    """Let the stages that follow try at once."""
    said = _read()
    if said.pop("failed", None):
        _write(said)


def seconds_since_failure() -> float:
    """Return how long ago a stage of this pipeline found no connection."""
    return time.time() - _read().get("failed", 0.0)


def _file() -> Path:
    return root() / "work" / "tracking" / "once.json"


def _read() -> dict[str, float]:
    try:
        content = json.loads(_file().read_text(encoding="utf-8"))
        return dict(content["said"]) if content["pipeline"] == pipeline_key() else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _write(said: dict[str, float]) -> None:
    with suppress(OSError):
        _file().parent.mkdir(parents=True, exist_ok=True)
        _file().write_text(json.dumps({"pipeline": pipeline_key(), "said": said}), encoding="utf-8")
