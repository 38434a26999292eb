"""Remember what a stage did: one MLflow run per stage, a child of the pipeline's run.

MLflow is never needed to get a result. Every event also goes to a local record. While the server is
away the stage says so once, goes on, and sends what was missed when there is an answer again.
"""

import getpass
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mar.files import atomic
from stages import changes, git, lineage, once, pipeline_run
from stages.mlflow_store import MOST_CHARACTERS, Store, connect, reason
from stages.stage import root


FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"
AWAY_SECONDS = 300.0  # until a server that did not answer is asked again
SYSTEM_SECONDS = 15  # between two looks at processor, memory and accelerators
# Tracked files that a run changes, and the params, whose changes are noted key by key.
RESULTS = (":(exclude)dvc.lock", ":(exclude)out", ":(exclude)params.yaml")
INPUT_TAG = "dvc.dep."  # tags with the digest of an input: one artifact, as there are dozens
REFUSALS = {  # of a request; anything else is a fault of the connection
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "PERMISSION_DENIED",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}
SOURCE_TAGS = (
    "git.commit",
    "git.dirty",
    "dvc.experiment",
    "mlflow.source.git.commit",
    "mlflow.source.type",
    "mlflow.user",
)


class Run:
    """One stage's run in MLflow, or a local record alone while the server is away.

    Attributes:
        id: The run's id in MLflow, once it has one.
    """

    def __init__(self, stage: str) -> None:
        self.id: str | None = None
        self._stage = stage
        self._record = root() / "work" / "tracking" / f"{stage}.jsonl"
        self._store: Store | None = None
        self._pipeline = ""
        self._started = False
        self._waiting: deque[Callable[[Store], None]] = deque()
        self._ask_again = 0.0
        self._numbers: dict[str, float] = {}
        self._steps: dict[str, int] = {}
        self._speeds: dict[str, float] = {}
        self._monitor: Any = None

    def start(self, resume: str | None, tags: Mapping[str, str]) -> None:
        """Open the run, or continue the run `resume` of a stage that was killed."""
        self._started = True
        self._note("start", {"stage": self._stage, "tags": dict(tags)})
        self._ask_again = time.monotonic() + AWAY_SECONDS - once.seconds_since_failure()
        self._send(lambda store: self._open(store, resume, tags))

    def params(self, values: Mapping[str, object]) -> None:
        """Log parameters, nested ones under dotted names."""
        flat = changes.flatten(values)
        self._note("params", flat)
        self._send(lambda store: store.log_params(str(self.id), flat))

    def metrics(self, values: Mapping[str, object], step: int | None = None) -> None:
        """Log numbers at a step, or beside the last step; nested names become `group/name`."""
        flat = {key.replace(".", "/"): value for key, value in changes.flatten(values).items()}
        numbers = {key: float(v) for key, v in flat.items() if isinstance(v, (int, float))}
        self._note("metrics", numbers, step)
        if step is None:  # the last point of a curve is there already
            points = {key: self._numbers[key] for key in self._steps}
            numbers = {key: value for key, value in numbers.items() if points.get(key) != value}
        self._numbers |= numbers
        if step is not None:
            self._steps |= dict.fromkeys(numbers, step)
        steps = {key: self._steps.get(key, 0) for key in numbers}
        now = int(time.time() * 1000)

        self._send(lambda store: store.log_numbers(str(self.id), numbers, steps, now))

    def tags(self, values: Mapping[str, str]) -> None:
        """Tag the run, and the pipeline's, with what the numbers were measured with."""
        kept = {f"mar.{key}": value[:MOST_CHARACTERS] for key, value in values.items()}
        self._note("tags", kept)

        def log(store: Store) -> None:
            store.log_tags(str(self.id), kept)
            store.log_tags(self._pipeline, kept)

        self._send(log)

    def picture(self, path: Path, name: str = "") -> None:
        """Log a picture file as an artifact, in folder `name`."""
        self._note("picture", {"path": str(path)})

        def log(store: Store) -> None:
            if path.is_file():  # else it could not be sent in time
                store.client.log_artifact(self.id, str(path), name or None)
                store.show(str(self.id), f"{name}/{path.name}" if name else path.name)

        self._send(log)

    def document(self, path: Path) -> None:
        """Log a file that a browser shows as an artifact."""
        self._note("document", {"path": str(path)})

        def log(store: Store) -> None:
            if path.is_file():
                store.client.log_artifact(self.id, str(path))

        self._send(log)

    def step_picture(self, path: Path, key: str, step: int) -> None:
        """Log a picture of a training at a step; the run's page moves through those of a key."""
        self._note("picture", {"path": str(path)}, step)

        def log(store: Store) -> None:
            if path.is_file():
                store.log_image(str(self.id), path, key, step=step)
                store.show(str(self.id), f"{key}.png")

        self._send(log)

    def speeds(self, values: Mapping[str, float]) -> None:
        """Log wall-clock speeds and times, and keep them in `work/speeds/<stage>.json`."""
        self._speeds |= values
        curves = self._steps.keys() & values  # a mean is no point of the curve of its name
        self.metrics({f"mean_{key}" if key in curves else key: it for key, it in values.items()})
        atomic.write_json(root() / "work" / "speeds" / f"{self._stage}.json", self._speeds)

    def finish(self, status: str) -> None:
        """Close the run; the pipeline's run takes the status until another stage starts."""
        self._note("finish", {"status": status})
        if self._monitor is not None:
            self._monitor.finish()
        self._send(lambda store: self._close(store, status))

    def _open(self, store: Store, resume: str | None, tags: Mapping[str, str]) -> None:
        source = {key: value for key, value in tags.items() if key in SOURCE_TAGS}
        self._pipeline = pipeline_run.open_run(store, source)
        earlier = self.id or resume  # the former if the connection broke in the midst of this
        if earlier and self._revive(store, earlier):
            self.id = earlier
        else:
            self.id = self._create(store)
        inputs = {key: value for key, value in tags.items() if key.startswith(INPUT_TAG)}
        if inputs:
            digests = {key.removeprefix(INPUT_TAG): value for key, value in inputs.items()}
            store.client.log_dict(self.id, digests, "inputs.json")
        kept = {key: value for key, value in tags.items() if key not in inputs}
        store.log_tags(self.id, {**kept, "mlflow.parentRunId": self._pipeline})
        store.client.update_run(self._pipeline, status="RUNNING")
        self._monitor = _monitor(store, self.id, resumed=self.id == earlier)
        once.say(f"runs: {store.page}" + ("" if store.is_server else "   (once `mlflow ui` runs)"))

    def _create(self, store: Store) -> str:
        """Make a run; the parameters of the stages before it tell it from others."""
        stages = lineage.declarations()
        declared = stages.get(self._stage, {})
        changed = pipeline_run.difference()
        title = self._stage
        if changed:
            title += f" \N{MIDDLE DOT} {changes.describe(changed)}"
        tags = {
            "mlflow.source.name": f"stages/{self._stage}.py",
            "mlflow.note.content": declared.get("desc", ""),
        }
        info = store.client.create_run(store.experiment, run_name=title, tags=tags).info
        before = [stages[name] for name in lineage.ancestors(self._stage, stages)]
        theirs = [key for stage in before for key in lineage.section_names(stage)]
        own = lineage.section_names(declared)  # which the stage itself logs
        kept = {
            key: value
            for key, value in changes.current().items()
            if lineage.belongs(key, theirs) and not lineage.belongs(key, own)
        }
        store.log_params(info.run_id, kept)
        return info.run_id

    def _revive(self, store: Store, run_id: str) -> bool:
        """Continue an earlier run, unless it came to its end (a stage may run again, unchanged)."""
        try:
            if store.client.get_run(run_id).info.status == FINISHED:
                return False
            store.client.update_run(run_id, status="RUNNING")
        except Exception:
            return False  # made with another tracking database, or deleted
        return True

    def _close(self, store: Store, status: str) -> None:
        if status == FINISHED:
            if identity := pipeline_run.own_lineage(self._stage):
                store.client.set_tag(self.id, pipeline_run.LINEAGE_TAG, identity)
            try:
                pipeline_run.finish(store, self._pipeline, self._stage, self._numbers)
            except (ValueError, KeyError, OSError) as error:  # a file that is being edited
                once.say(f"the pipeline's run lacks numbers: {reason(error)}")
        store.client.set_terminated(self.id, status)
        store.client.set_terminated(self._pipeline, status)

    def _send(self, call: Callable[[Store], None]) -> None:
        """Send what was asked for, in its order, unless there was no answer a while ago."""
        if not self._started:
            return  # a record alone
        self._waiting.append(call)
        if time.monotonic() < self._ask_again:
            return
        try:
            if self._store is None:
                self._store = connect()
                once.forget_failure()
            while self._waiting:
                self._send_one(self._store, self._waiting[0])
                self._waiting.popleft()
        except Exception as error:
            self._store = None
            self._ask_again = time.monotonic() + AWAY_SECONDS
            once.remember_failure()
            once.say(f"MLflow is away ({reason(error)}); going on, see {self._record.parent}")

    def _send_one(self, store: Store, call: Callable[[Store], None]) -> None:
        try:
            call(store)
        except Exception as error:
            if self.id is None or getattr(error, "error_code", None) not in REFUSALS:
                raise
            once.say(f"MLflow refused a part of {self._stage}'s run: {reason(error)}")

    def _note(self, event: str, values: Mapping[str, object], step: int | None = None) -> None:
        line = {"time": time.time(), "event": event, "step": step, **values}
        try:
            self._record.parent.mkdir(parents=True, exist_ok=True)
            with self._record.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, default=str) + "\n")
        except OSError as error:  # a full disk, a folder that may not be written
            once.say(f"no record of what {self._stage} does in {self._record}: {error.strerror}")


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
    """Return the commit, whether code differs from it, DVC's experiment, and the user."""
    tags = {"mlflow.source.type": "LOCAL"}
    if commit := git.run("rev-parse", "HEAD"):
        changed = git.run("status", "--porcelain", "--untracked-files=no", "--", ".", *RESULTS)
        tags |= {"git.commit": commit, "mlflow.source.git.commit": commit}
        tags["git.dirty"] = str(bool(changed)).lower()
    elif complaint := git.complaint():
        once.say(f"no commit is noted with the runs, as git says:\n{complaint}")
    if name := os.environ.get("DVC_EXP_NAME"):
        tags["dvc.experiment"] = name
    with suppress(OSError, KeyError):  # a user without a name, as containers have
        tags["mlflow.user"] = getpass.getuser()
    return tags


def _monitor(store: Store, run_id: str, *, resumed: bool) -> Any:
    """Return a running look-out for processor, memory, disk, network and accelerators.

    `MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false` turns it off.
    """
    if os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true").lower() in ("false", "0"):
        return None
    try:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(
            run_id, SYSTEM_SECONDS, resume_logging=resumed, tracking_uri=store.uri
        )
        monitor.start()
    except Exception:  # no psutil, or a machine that it does not know
        return None
    return monitor
