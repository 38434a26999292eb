"""Runs find their database whatever the project is called, wherever it went, whatever befell it."""

import logging
import os
import shutil
import sqlite3
import time
from pathlib import Path

import pytest
from mlflow.store.db import utils as mlflow_database
from mlflow.tracking import MlflowClient
from mlflow.tracking._tracking_service import utils

from stages import mlflow_store


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project whose own database holds one run with one artifact."""
    folder = tmp_path_factory.mktemp("template") / "project"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAR_ROOT", str(folder))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        store = mlflow_store.connect()
        run = store.client.create_run(store.experiment, run_name="old").info.run_id
        store.client.log_dict(run, {}, "inputs.json")
    return folder


@pytest.fixture
def copy(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of that project, which is the one in use."""
    folder = tmp_path / "copy"
    shutil.copytree(template, folder)
    use(folder, monkeypatch)
    return folder


def use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a folder for the project, as a fresh process would: MLflow remembers where runs are."""
    utils._artifact_repos_cache.clear()
    folder.mkdir(exist_ok=True)
    monkeypatch.setenv("MAR_ROOT", str(folder))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)


def runs(store: mlflow_store.Store) -> list[str]:
    found = store.client.search_runs([store.experiment])
    return [run.info.run_id for run in found]


@pytest.mark.parametrize("name", ["per%cent", "100%25", "why?x=1", "a#b c", "caf\u00e9;&='"])
def test_any_folder_name_holds_its_database_and_artifacts(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tmp_path / name
    shutil.copytree(template, folder)
    use(folder, monkeypatch)
    store = mlflow_store.connect()
    assert len(runs(store)) == 1
    run = store.client.create_run(store.experiment).info.run_id
    store.client.log_dict(run, {}, "new.json")
    assert [path.name for path in folder.glob(f"mlruns/{run}/artifacts/*")] == ["new.json"]
    assert [item.path for item in store.client.list_artifacts(run)] == ["new.json"]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_environment_in_a_folder_with_a_percent_sign_works(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = copy / "per%cent"
    package.symlink_to(mlflow_database._get_package_dir())
    monkeypatch.setattr(mlflow_database, "_get_package_dir", lambda: str(package))
    with pytest.raises(ValueError, match="invalid interpolation syntax"):
        mlflow_database._get_latest_schema_revision()
    for _ in range(2):
        assert len(runs(mlflow_store.connect())) == 1
    mlflow_database._get_latest_schema_revision()


def test_a_copied_project_keeps_to_its_own_folder(template: Path, copy: Path) -> None:
    before = sorted(template.rglob("*"))
    store = mlflow_store.connect()
    (old,) = runs(store)
    assert str(copy) in store.client.get_run(old).info.artifact_uri
    store.client.log_dict(old, {}, "more.json")
    new = store.client.create_run(store.experiment).info.run_id
    store.client.log_dict(new, {}, "inputs.json")
    assert len(list(copy.glob("mlruns/*/artifacts/*.json"))) == 3
    assert sorted(template.rglob("*")) == before


def test_artifacts_that_stayed_behind_are_still_found(template: Path, copy: Path) -> None:
    shutil.rmtree(copy / "mlruns")
    store = mlflow_store.connect()
    (old,) = runs(store)
    assert [item.path for item in store.client.list_artifacts(old)] == ["inputs.json"]
    new = store.client.create_run(store.experiment).info
    assert str(copy) in new.artifact_uri


def test_a_place_for_artifacts_that_a_person_chose_is_left(copy: Path) -> None:
    with sqlite3.connect(copy / "mlflow.db") as database:
        database.execute("update experiments set artifact_location = 's3://bucket/mar'")
    database.close()
    store = mlflow_store.connect()
    assert store.client.get_experiment(store.experiment).artifact_location == "s3://bucket/mar"


def test_a_deleted_experiment_is_restored(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = mlflow_store.connect()
    store.client.delete_experiment(store.experiment)
    store = mlflow_store.connect()
    assert store.client.get_experiment(store.experiment).lifecycle_stage == "active"
    assert "experiment 'mar' was deleted; it is restored" in capsys.readouterr().err


def test_an_experiment_has_the_name_that_mlflows_variable_says(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "/Users/someone/mar")
    store = mlflow_store.connect()
    experiment = store.client.get_experiment(store.experiment)
    assert experiment.name == "/Users/someone/mar"
    assert experiment.artifact_location == (copy / "mlruns").as_uri()
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", store.experiment)
    assert mlflow_store.connect().experiment == store.experiment


def test_the_page_named_is_that_of_the_training_runs(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = mlflow_store.connect()
    assert store.page.startswith(f"http://127.0.0.1:5000/#/experiments/{store.experiment}/runs")
    experiment = store.client.get_experiment(store.experiment)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    served = mlflow_store.Store(None, "https://me:secret@host/mlflow/", "7")
    assert served.page.startswith("https://...@host/mlflow/#/experiments/7/runs")


@pytest.mark.parametrize(
    ("version", "said"), [("0584bdc529eb", "of an older MLflow"), ("deadbeef", "of a newer MLflow")]
)
def test_a_database_of_another_mlflow_is_refused_with_the_remedy(
    copy: Path, version: str, said: str
) -> None:
    with sqlite3.connect(copy / "mlflow.db") as database:
        database.execute("update alembic_version set version_num = ?", [version])
    database.close()
    with pytest.raises(Exception, match="schema") as caught:
        mlflow_store.connect()
    reason = mlflow_store.reason(caught.value)
    assert said in reason
    assert f"mlflow db upgrade sqlite:///{copy / 'mlflow.db'}" in reason


def test_a_query_that_a_signal_cuts_short_leaves_no_traceback(copy: Path) -> None:
    mlflow_store.connect()
    assert not logging.getLogger("sqlalchemy.pool.impl.QueuePool").isEnabledFor(logging.ERROR)


@pytest.mark.parametrize("kept", [0, 4096])
def test_a_damaged_database_is_named_with_the_remedy(copy: Path, kept: int) -> None:
    path = copy / "mlflow.db"
    content = path.read_bytes()
    path.write_bytes(content[:kept] + b"no database" * (len(content) // 11))
    with pytest.raises(Exception, match="sqlite3") as caught:
        mlflow_store.connect()
    said = mlflow_store.reason(caught.value)
    assert said.startswith(f"{path}: ")
    assert said.endswith("; move it away, and a new one is made")


def test_what_is_no_database_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(tmp_path, monkeypatch)
    (tmp_path / "mlflow.db").mkdir()
    started = time.monotonic()
    with pytest.raises(OSError, match="is a folder, not a database"):
        mlflow_store.connect()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    with pytest.raises(Exception, match="unable to open database file"):
        mlflow_store.connect()
    assert time.monotonic() - started < 10


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(tmp_path, monkeypatch)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match=f"{tmp_path} is not writable"):
            mlflow_store.connect()
    finally:
        tmp_path.chmod(0o700)


def test_a_dead_server_costs_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(tmp_path, monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:secret@127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(ConnectionError) as caught:
        mlflow_store.connect()
    assert time.monotonic() - started < 2 * mlflow_store.PROBE_SECONDS
    assert mlflow_store.reason(caught.value) == "no answer from http://...@127.0.0.1:9"


def test_the_first_of_two_projects_shares_nothing_with_the_second(
    template: Path, copy: Path
) -> None:
    store = mlflow_store.connect()
    store.client.create_run(store.experiment)
    original = MlflowClient(mlflow_store.sqlite_uri(template / "mlflow.db"))
    assert len(original.search_runs(["1"])) == 1
