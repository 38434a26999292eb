"""Remember what a stage did: one MLflow run per stage, a child of the pipeline's run.

MLflow is never needed to get a result. Every event also goes to a local record, and when the server
cannot be reached the stage says so once and goes on.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from mar.files import atomic
from stages.locks import locked
from stages.stage import root


EXPERIMENT = "mar"
PIPELINE_TAG = "mar.pipeline"
FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"


class Run:
    """One stage's run in MLflow, or a local record alone while the server is away."""

    def __init__(self, stage: str) -> None:
        self.id: str | None = None
        self._stage = stage
        self._record = root() / "work" / "tracking" / f"{stage}.jsonl"
        self._speeds: dict[str, float] = {}
        self._client: Any = None
        self._parent: str | None = None

    def start(self, resume: str | None, tags: Mapping[str, str]) -> None:
        """Open the run, or continue the run `resume` of a stage that was killed."""
        self._note("start", {"stage": self._stage, "tags": dict(tags)})
        try:
            self._client, experiment = _connect()
            self._parent = _pipeline_run(self._client, experiment)
            if resume and self._revive(resume):
                self.id = resume
            else:
                self.id = self._client.create_run(experiment, run_name=self._stage).info.run_id
            for key, value in {**tags, "mlflow.parentRunId": self._parent}.items():
                self._client.set_tag(self.id, key, value)
            self._client.update_run(self._parent, status="RUNNING")
        except Exception as error:
            self._away(error)

    def params(self, values: Mapping[str, object]) -> None:
        """Log parameters, nested ones under dotted names."""
        flat = dict(_flatten(values))
        self._note("params", flat)
        if self._client is not None:
            from mlflow.entities import Param

            entries = [Param(key, str(value)[:6000]) for key, value in flat.items()]
            self._try("log_batch", (), entries)

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log numbers at a step; nested names become `group/name`."""
        flat = {key.replace(".", "/"): value for key, value in _flatten(values)}
        numbers = {key: float(v) for key, v in flat.items() if isinstance(v, (int, float))}
        self._note("metrics", numbers, step)
        if self._client is not None:
            from mlflow.entities import Metric

            now = int(time.time() * 1000)
            entries = [Metric(key, value, now, step) for key, value in numbers.items()]
            self._try("log_batch", entries)

    def picture(self, path: Path, name: str = "") -> None:
        """Log a picture file as an artifact."""
        self._note("picture", {"path": str(path)})
        self._try("log_artifact", str(path), name or None)

    def step_picture(self, path: Path, key: str, step: int) -> None:
        """Log a picture of a training at a step."""
        self.picture(path, f"{key}/{step:07d}")

    def speeds(self, values: Mapping[str, float]) -> None:
        """Log wall-clock speeds and times, and keep them in `work/speeds/<stage>.json`."""
        self.metrics(values)
        self._speeds |= values
        atomic.write_json(root() / "work" / "speeds" / f"{self._stage}.json", self._speeds)

    def finish(self, status: str) -> None:
        """Close the run; the pipeline's run takes the status until another stage starts."""
        self._note("finish", {"status": status})
        self._try("set_terminated", status)
        if self._client is not None and self._parent is not None:
            self._guard(self._client.set_terminated, self._parent, status)

    def _revive(self, run_id: str) -> bool:
        try:
            self._client.update_run(run_id, status="RUNNING")
        except Exception:
            return False  # made with another tracking database
        return True

    def _try(self, method: str, *values: object) -> None:
        if self._client is not None:
            self._guard(getattr(self._client, method), self.id, *values)

    def _guard(self, call: Any, *values: object) -> None:
        try:
            call(*values)
        except Exception as error:
            self._away(error)

    def _away(self, error: Exception) -> None:
        self._client = None
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        sys.stderr.write(f"MLflow is away ({reason}); going on, see {self._record}\n")

    def _note(self, event: str, values: Mapping[str, object], step: int | None = None) -> None:
        line = {"time": time.time(), "event": event, "step": step, **values}
        self._record.parent.mkdir(parents=True, exist_ok=True)  # may be removed meanwhile
        with self._record.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=str) + "\n")


@contextmanager
def track(stage: str, tags: Mapping[str, str], resume: str | None = None) -> Iterator[Run]:
    """Track one stage from start to end, whatever the end is."""
    run = Run(stage)
    run.start(resume, {"mar.stage": stage, **tags, **source_tags()})
    try:
        yield run
    except (KeyboardInterrupt, SystemExit):
        run.finish(KILLED)
        raise
    except BaseException:
        run.finish(FAILED)
        raise
    run.finish(FINISHED)


def source_tags() -> dict[str, str]:
    """Return the git commit, whether tracked files differ from it, and DVC's experiment name."""
    commit = _git("rev-parse", "HEAD")
    tags = {"git.commit": commit, "mlflow.source.git.commit": commit} if commit else {}
    if commit:
        changed = _git("status", "--porcelain", "--untracked-files=no")
        tags["git.dirty"] = str(bool(changed)).lower()
    if name := os.environ.get("DVC_EXP_NAME"):
        tags["dvc.experiment"] = name
    return tags


def pipeline_key() -> str:
    """Return what the stages of one pipeline run share: the flow's key, or the `dvc` above."""
    if key := os.environ.get("MAR_PIPELINE"):
        return key
    parent = os.getppid()
    try:
        started = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:  # no /proc: a process number alone may be used again one day
        started = "0"
    return f"{os.uname().nodename}-{parent}-{started}"


def _connect() -> tuple[Any, str]:
    """Return a client and the experiment's id; the first one here makes the database."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri or f"sqlite:///{root() / 'mlflow.db'}")
    with _first_come():  # two first users break the database's migration
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is not None:
            return client, experiment.experiment_id
        artifacts = None if uri else (root() / "mlruns").as_uri()
        return client, client.create_experiment(EXPERIMENT, artifact_location=artifacts)


def _pipeline_run(client: Any, experiment: str) -> str:
    key = pipeline_key()
    with _first_come():
        found = client.search_runs([experiment], f"tags.`{PIPELINE_TAG}` = '{key}'", max_results=1)
        if found:
            return found[0].info.run_id
        name = os.environ.get("DVC_EXP_NAME") or time.strftime("pipeline %Y-%m-%d %H:%M:%S")
        tags = {PIPELINE_TAG: key, **source_tags()}
        return client.create_run(experiment, run_name=name, tags=tags).info.run_id


def _first_come() -> AbstractContextManager[None]:
    """Return the lock that lets one stage at a time make a database, or a pipeline's run."""
    return locked(root() / "work" / "mlflow.lock")


def _git(*arguments: str) -> str:
    result = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else ""


def _flatten(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
