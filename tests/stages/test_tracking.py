"""Records go to the repository that they are about, under the name of the experiment."""

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from stages import tracking
from stages.stage import root


def test_a_copy_keeps_no_records_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert root() == tmp_path.resolve()
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "copy"))
    assert root() == tmp_path / "copy"
    monkeypatch.setenv("MAR_ROOT", str(tmp_path / "project"))
    assert root() == tmp_path / "project"


def test_a_pipelines_run_has_the_name_of_its_experiment(
    tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAR_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    monkeypatch.setenv("MAR_PIPELINE", "key of a row")
    monkeypatch.setenv("DVC_EXP_NAME", "toy-l2-seed0")
    with tracking.track("sample", {}) as run:
        pass
    client = MlflowClient(tracking_uri)
    parent = client.get_run(str(run.id)).data.tags["mlflow.parentRunId"]
    assert client.get_run(parent).info.run_name == "toy-l2-seed0"
