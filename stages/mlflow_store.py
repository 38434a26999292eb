"""Where runs are kept: the project's own MLflow database, or what `MLFLOW_TRACKING_URI` names."""

import logging
import os
import shlex
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from stages.locks import locked
from stages.stage import root


EXPERIMENT = "mar"
KIND = "mlflow.experimentKind"
TRAINING_KIND = "custom_model_development"  # of an experiment: its page shows runs, not traces
NOTE = "mlflow.note.content"
DESCRIPTION = (  # beside the experiment, where MLflow 3 leads to a page of traces first
    "Pipelines and, below each, its stages. To see them: 'Model training' at the upper left, then "
    "'Runs'. To compare pipelines: tick them, then 'Compare'."
)
PROBE_SECONDS = 3.0
MOST_PARAMS, MOST_CHARACTERS = 100, 6000  # in one request, and in one parameter
LOCK_SECONDS = 60.0  # the first use of a database takes a few
# What SQLite says of a file that is no database, or a part of one.
DAMAGED = ("file is not a database", "disk image is malformed")


@dataclass(frozen=True)
class Store:
    """A place for runs, to which there is a connection.

    Attributes:
        client: MLflow's client.
        uri: The address of the database or server.
        experiment: The id of the experiment.
    """

    client: Any
    uri: str
    experiment: str

    @property
    def page(self) -> str:
        """The address of the page that shows the training runs.

        For a database it is that of `mlflow ui`, as it starts by default.
        """
        server = self.uri if self.is_server else "http://127.0.0.1:5000"
        page = f"{_without_password(server).rstrip('/')}/#/experiments/{self.experiment}/runs"
        return f"{page}?workflowType=machine_learning"

    @property
    def is_server(self) -> bool:
        """Whether runs go to a server, which shows them by itself."""
        return self.uri.startswith("http")

    def log_params(self, run: str, values: Mapping[str, object]) -> None:
        """Log parameters, however many and however long."""
        from mlflow.entities import Param

        entries = [Param(key, str(value)[:MOST_CHARACTERS]) for key, value in values.items()]
        for start in range(0, len(entries), MOST_PARAMS):
            self.client.log_batch(run, params=entries[start : start + MOST_PARAMS])

    def log_tags(self, run: str, values: Mapping[str, str]) -> None:
        """Log tags."""
        from mlflow.entities import RunTag

        self.client.log_batch(run, tags=[RunTag(key, value) for key, value in values.items()])

    def log_numbers(
        self,
        run: str,
        values: Mapping[str, float],
        steps: Mapping[str, int] | None = None,
        time_ms: int | None = None,
    ) -> None:
        """Log numbers, at step 0 where no other is given."""
        from mlflow.entities import Metric

        now = time_ms or int(time.time() * 1000)
        steps = steps or {}
        entries = [Metric(key, value, now, steps.get(key, 0)) for key, value in values.items()]
        if entries:
            self.client.log_batch(run, metrics=entries)

    def show(self, run: str, artifact: str) -> None:
        """Show a picture that is an artifact in the run's description, which heads its page."""
        note = self.client.get_run(run).data.tags.get(NOTE, "")
        address = f"get-artifact?path={quote(artifact, safe='')}&run_uuid={run}"
        if address not in note and not self.uri.startswith("databricks"):  # which has no such page
            self.client.set_tag(run, NOTE, f"{note}\n\n![{Path(artifact).stem}]({address})")

    def log_image(self, run: str, path: Path, name: str, *, step: int) -> None:
        """Log a picture of a step, and as `<name>.png`, which holds the latest one.

        The charts of the run's page have a slider for the steps.
        """
        from PIL import Image

        with Image.open(path) as picture:
            picture.load()
        self.client.log_image(run, picture, key=name, step=step)
        self.client.log_image(run, picture, artifact_file=f"{name}.png")


def database() -> Path:
    """Return the database of a project whose runs go nowhere else."""
    return root() / "mlflow.db"


def exists() -> bool:
    """Whether runs may have been kept so far."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI")) or database().exists()


def connect() -> Store:
    """Return a connection to the experiment, which is made or restored if need be.

    Raises:
        OSError: there is no server or database to talk to.
        MlflowException: it does not do what is asked.
    """
    _quiet()
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        _probe(uri)
    else:
        _check_writable(database())
    from mlflow.tracking import MlflowClient

    _mend_mlflow()
    ours = uri or sqlite_uri(database())
    client = MlflowClient(ours)
    with exclusive():  # two first users break the database's migration
        experiment = _experiment(client, local=uri is None)
        if uri is None:
            move_artifacts(database(), root() / "mlruns", experiment)
    return Store(client, ours, experiment)


def sqlite_uri(path: Path) -> str:
    """Return the address of a database file, whatever characters its path holds.

    `%` and `?` have a meaning there. MLflow would make a folder of the quoted name unless the
    driver is named too.
    """
    quoted = quote(str(path))
    return (
        f"sqlite:///{path}" if not {"%", "?"} & set(str(path)) else f"sqlite+pysqlite:///{quoted}"
    )


def reason(error: Exception) -> str:
    """Return what is wrong with the connection in a line, with the remedy where there is one."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "out-of-date database schema" in text or "Can't locate revision" in text:
        return _schema_reason()
    if any(words in text for words in DAMAGED) and not os.environ.get("MLFLOW_TRACKING_URI"):
        (first, *_) = text.partition(" [SQL")
        return f"{database()}: {first}; move it away, and a new one is made"
    return text if len(text) <= 200 else f"{text[:197]}..."


@contextmanager
def exclusive() -> Iterator[None]:
    """Let one stage at a time make a database, or a pipeline's run.

    Where there can be no lock, or another process keeps it, the stage goes on without.
    """
    with ExitStack() as stack:
        with suppress(OSError):
            stack.enter_context(locked(root() / "work" / "mlflow.lock", patience=LOCK_SECONDS))
        yield


def move_artifacts(path: Path, folder: Path, experiment: str) -> None:
    """Let an experiment of a copied or moved project keep its artifacts in the project's folder.

    MLflow writes absolute paths into the database. Those of runs whose files stayed behind, and are
    still there, are left.
    """
    target = folder.as_uri()
    with closing(sqlite3.connect(path, timeout=20)) as database, database:
        find = "select artifact_location from experiments where experiment_id = ?"
        (location,) = database.execute(find, [experiment]).fetchone()
        if location == target or not location.endswith("/mlruns"):
            return
        update = "update experiments set artifact_location = ? where experiment_id = ?"
        database.execute(update, [target, experiment])
        find = "select run_uuid, artifact_uri from runs where experiment_id = ?"
        for run, uri in database.execute(find, [experiment]).fetchall():
            new = target + uri.removeprefix(location)
            behind = _path(uri).exists() and not _path(new).exists()
            if uri.startswith(f"{location}/") and not behind:
                update = "update runs set artifact_uri = ? where run_uuid = ?"
                database.execute(update, [new, run])


def experiment_name() -> str:
    """Return the experiment's name: `MLFLOW_EXPERIMENT_NAME`, or the project's own."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


def _experiment(client: Any, *, local: bool) -> str:
    if chosen := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        experiment = client.get_experiment(chosen)
    else:
        experiment = client.get_experiment_by_name(experiment_name())
    if experiment is None:
        artifacts = (root() / "mlruns").as_uri() if local else None
        tags = {KIND: TRAINING_KIND, NOTE: DESCRIPTION}
        return client.create_experiment(experiment_name(), artifacts, tags)
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
        sys.stderr.write(f"MLflow: experiment {experiment.name!r} was deleted; it is restored\n")
    if local and KIND not in experiment.tags:
        client.set_experiment_tag(experiment.experiment_id, KIND, TRAINING_KIND)
    return experiment.experiment_id


def _quiet() -> None:
    """Send nothing home, give up on a dead server in seconds, and log no internals."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    logging.getLogger("mlflow.store").setLevel(logging.ERROR)
    logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)
    # Where a signal cuts a query short, a cursor that cannot be closed is no news.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)


def _mend_mlflow() -> None:
    """Let MLflow give up on a database in time, and run from a folder with a `%` in its name.

    It tries for 100 seconds to open what is no database. And it gives the folder of its own
    package to a parser for which `%` has a meaning.
    """
    from mlflow.store.db import utils

    utils.MAX_RETRY_COUNT = 1
    package = utils._get_package_dir()
    if "%" in package.replace("%%", ""):
        utils._get_package_dir = lambda: package.replace("%", "%%")


def _probe(uri: str) -> None:
    """Ask a server for a sign of life, which any answer is."""
    if urlsplit(uri).scheme not in ("http", "https"):
        return
    import requests

    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=(PROBE_SECONDS, 10), stream=True).close()
    except requests.exceptions.SSLError:
        return  # it is alive; MLflow has settings of its own for certificates
    except requests.exceptions.RequestException as error:
        raise ConnectionError(f"no answer from {_without_password(uri)}") from error


def _check_writable(path: Path) -> None:
    """Refuse a database that cannot be one, before MLflow tries for long.

    Raises:
        OSError: it says why.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a database")
    place = path if path.exists() else path.parent
    if not os.access(place, os.W_OK):
        raise PermissionError(f"{place} is not writable")


def _schema_reason() -> str:
    from alembic.script import ScriptDirectory
    from mlflow.store.db import utils
    from mlflow.version import VERSION

    uri = os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(database())
    known = {step.revision for step in _revisions(ScriptDirectory, utils)}
    if _schema_of(uri) not in known:
        return (
            f"the tracking database {_without_password(uri)} is of a newer MLflow than {VERSION}, "
            "which is installed; install the newer one, and if it asks for that, copy the database "
            f"and run: mlflow db upgrade {shlex.quote(uri)}"
        )
    return (
        f"the tracking database is of an older MLflow than {VERSION}, which is installed; copy it, "
        f"then run: mlflow db upgrade {shlex.quote(uri)}"
    )


def _revisions(scripts: Any, utils: Any) -> Any:
    return scripts.from_config(utils._get_alembic_config(db_url="")).walk_revisions()


def _schema_of(uri: str) -> str | None:
    import sqlalchemy
    from sqlalchemy.exc import SQLAlchemyError

    engine = sqlalchemy.create_engine(uri)
    try:
        with engine.connect() as connection:
            query = sqlalchemy.text("select version_num from alembic_version")
            return connection.execute(query).scalar()
    except SQLAlchemyError:
        return None
    finally:
        engine.dispose()


def _without_password(uri: str) -> str:
    head, separator, rest = uri.rpartition("@")
    return f"{urlsplit(head).scheme}://...@{rest}" if separator and "://" in head else uri


def _path(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))
