"""Tiny projects: one in which every stage has run, and empty ones."""

import os
import shutil
from pathlib import Path

import pytest
import released_project as released
from ruamel.yaml import YAML
from tiny_project import make_project, run_stage, tiny_params


@pytest.fixture(scope="session")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return one tracking database for all tests: to make one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tracking_uri: str) -> Path:
    """Return a project in which every stage has run."""
    project = make_project(tmp_path_factory.mktemp("tiny") / "project", tiny_params())
    before = Path.cwd()
    os.chdir(project)
    patch = pytest.MonkeyPatch()
    patch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    patch.setenv("MAR_PIPELINE", "test")
    patch.setenv("MAR_WORKERS", "0")
    try:
        for name in YAML(typ="safe").load(Path("dvc.yaml").read_text())["stages"]:
            run_stage(name)
    finally:
        patch.undo()
        os.chdir(before)
    return project


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
        patch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
        patch.setenv("MAR_WORKERS", "0")
        released.write_files(params)
        for name in YAML(typ="safe").load(Path("dvc.yaml").read_text())["stages"]:
            run_stage(name)
    return project


@pytest.fixture
def copied(project: Path, imported: Path) -> Path:
    """Return a copy of that project, which is the present folder."""
    for name in ("files", "out", "work"):
        shutil.copytree(imported / name, project / name)
    released.write_params(released.released_params())
    return project
