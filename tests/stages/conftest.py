"""Tiny projects: one in which every stage has run, and empty ones."""

import os
import shutil
from pathlib import Path

import pytest
import released_project as released
from filelock import FileLock
from ruamel.yaml import YAML
from tiny_project import make_project, run_stage, tiny_params


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project in which every stage has run, with their runs in `mlflow.db` beside it.

    One of the processes that run the tests makes it, and all use it.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tiny"
    with FileLock(f"{folder}.lock"):
        if not (folder / "made").is_file():
            folder.mkdir()
            run_all_stages(make_project(folder / "project", tiny_params()), database(folder))
            (folder / "made").touch()
    return folder / "project"


def run_all_stages(project: Path, tracking_uri: str) -> None:
    """Run every stage of a project, as one pipeline."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
        patch.setenv("MAR_PIPELINE", "test")
        patch.setenv("MAR_WORKERS", "0")
        for name in YAML(typ="safe").load(Path("dvc.yaml").read_text())["stages"]:
            run_stage(name)


def database(folder: Path) -> str:
    """Return the address of the tracking database of a folder."""
    return f"sqlite:///{folder / 'mlflow.db'}"


@pytest.fixture(scope="session")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory, finished: Path) -> str:
    """Return one tracking database for all tests of this process: to make one takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    shutil.copy(finished.parent / "mlflow.db", folder)
    return database(folder)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracking_uri: str) -> Path:
    """Return an empty tiny project, which is the present folder."""
    folder = make_project(tmp_path / "project", tiny_params())
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    monkeypatch.setenv("MAR_WORKERS", "0")
    return folder


@pytest.fixture(scope="session")
def imported(tmp_path_factory: pytest.TempPathFactory, tracking_uri: str) -> Path:
    """Return a project in which every stage has run with released weights as they are."""
    params = released.released_params()
    project = make_project(tmp_path_factory.mktemp("imported") / "project", params)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        released.write_files(params)
    run_all_stages(project, tracking_uri)
    return project


@pytest.fixture
def copied(project: Path, imported: Path) -> Path:
    """Return a copy of that project, which is the present folder."""
    for name in ("files", "out", "work"):
        shutil.copytree(imported / name, project / name)
    released.write_params(released.released_params())
    return project
