"""Records go to the repository that they are about, under the name of the experiment."""

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from mar.training.trainer import OptimisationConfig
from stages import tracking, train_loop


def test_a_copy_keeps_no_records_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert tracking.root() == tmp_path.resolve()
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "copy"))
    assert tracking.root() == tmp_path / "copy"
    monkeypatch.setenv("MAR_ROOT", str(tmp_path / "project"))
    assert tracking.root() == tmp_path / "project"


def test_a_pipelines_run_has_the_name_of_its_experiment(
    tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAR_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    monkeypatch.setenv("MAR_PIPELINE", "key of a row")
    monkeypatch.setenv("DVC_EXP_NAME", "toy-l2-seed0")
    with tracking.track("sample", tmp_path / "record.jsonl", {}) as run:
        pass
    client = MlflowClient(tracking_uri)
    parent = client.get_run(str(run.id)).data.tags["mlflow.parentRunId"]
    assert client.get_run(parent).info.run_name == "toy-l2-seed0"


def test_speed_is_all_images_over_all_seconds() -> None:
    config = OptimisationConfig.model_construct(batch_size=8)
    # 10 steps in 1 s, then 10 in 4 s.
    history = [
        {"step": 10, "images_per_second": 80.0},
        {"step": 20, "images_per_second": 20.0},
    ]
    assert train_loop.mean_speed(history, config) == pytest.approx(160 / 5)
    assert train_loop.mean_speed([], config) is None
