"""A pipeline's run tells all that people compare, whatever ran, was skipped, or was away."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from PIL import Image
from ruamel.yaml import YAML

from stages import mlflow_store, tracking
from stages.stage import root
from stages.tracking import Run


PIPELINE = """
stages:
  prepare:
    cmd: prepare
    desc: List the images.
    params: [data]
    outs: [out/prepare/manifest.parquet]
    metrics: [out/prepare/metrics.json: {cache: false}]
  train_generator:
    cmd: train
    deps: [out/prepare/manifest.parquet, code]
    params: [training]
    outs: [out/train_generator/ema.safetensors]
    metrics: [out/train_generator/metrics.json: {cache: false}]
  sample:
    cmd: sample
    deps: [out/train_generator/ema.safetensors]
    params: [sample]
    outs: [out/sample/samples]
    plots: [out/sample/grid.png]
  evaluate:
    cmd: evaluate
    deps: [out/sample/samples]
    params: [evaluate.seed]
    metrics: [out/evaluate/metrics.json: {cache: false}]
"""
PARAMS = {
    "data": {"source": "folder", "path": "images/cats", "image_size": 8},
    "training": {"lr": 1e-4, "head": {"kind": "flow"}},
    "sample": {"guidance_scale": 1, "labels": None},
    "evaluate": {"seed": 0},
}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracking_uri: str) -> Path:
    """Return a project of four stages in a git repository, which is the present folder."""
    folder = tmp_path / "small"
    (folder / "code").mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    for name in ("DVC_ROOT", "MAR_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(name, raising=False)
    begin(folder.parent.name, monkeypatch)
    Path("dvc.yaml").write_text(PIPELINE)
    Path("code/model.py").write_text("model = 1\n")
    set_param()
    commit()
    return folder


def begin(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAR_PIPELINE", key)


def commit() -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "Begin"]):
        subprocess.run(["git", *arguments], check=True)


def set_param(**changed: Any) -> None:
    with Path("params.yaml").open("w") as file:
        content = {**PARAMS, "sample": {**PARAMS["sample"], **changed}}
        YAML().dump(json.loads(json.dumps(content)), file)


def run_stage(name: str, **numbers: object) -> Run:
    """Do what the runner does with a stage that measures some numbers."""
    out = Path("out", name)
    out.mkdir(parents=True, exist_ok=True)
    (out / "manifest.parquet").write_bytes(bytes(Path.cwd()))  # other images in every test
    Image.new("RGB", (16, 16), "red").save(out / "grid.png")
    with tracking.track(name, {"mar.fingerprint": "f", "dvc.dep.code": "1234"}) as run:
        run.metrics(numbers)
        run.picture(out / "grid.png")
        (out / "metrics.json").write_text(json.dumps(numbers))
        run.speeds({"seconds": 2.0})
    return run


def run_all(fid: float) -> None:
    run_stage("prepare", num_train=3)
    run_stage("train_generator", loss=0.5)
    run_stage("sample", num_images=4)
    run_stage("evaluate", samples={"classifier_fid": fid}, held_out={"classifier_fid": 1.0})


def pipeline_of(run: Run) -> Any:
    client = MlflowClient()
    return client.get_run(client.get_run(str(run.id)).data.tags["mlflow.parentRunId"])


def latest() -> Any:
    """Return the pipeline's run, after its first stage has run (again)."""
    return pipeline_of(run_stage("prepare", num_train=3))


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
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    monkeypatch.setenv("MAR_PIPELINE", "key of a row")
    monkeypatch.setenv("DVC_EXP_NAME", "toy-l2-seed0")
    with tracking.track("sample", {}) as run:
        pass
    assert pipeline_of(run).info.run_name == "toy-l2-seed0"


def test_a_pipelines_run_holds_what_people_compare(small: Path) -> None:
    run_all(fid=7.0)
    run = latest()
    assert run.data.params == {
        "data.source": "folder",
        "data.path": "images/cats",
        "data.image_size": "8",
        "training.lr": "0.0001",
        "training.head.kind": "flow",
        "sample.guidance_scale": "1",
        "sample.labels": "None",
        "evaluate.seed": "0",
    }
    assert run.data.metrics == {
        "generator_loss": 0.5,
        "classifier_fid": 7.0,
        "seconds_prepare": 2.0,
        "seconds_train_generator": 2.0,
        "seconds_sample": 2.0,
        "seconds_evaluate": 2.0,
    }
    commit_id = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    assert run.info.run_name == f"as committed ({commit_id.stdout[:7]})"
    assert run.data.tags["mlflow.source.git.commit"] == commit_id.stdout.strip()
    assert run.data.tags["mlflow.source.name"] == "dvc.yaml"
    assert run.data.tags["git.dirty"] == "false"
    assert "All keys as committed" in run.data.tags["mlflow.note.content"]
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, json.loads(data.dataset.source)) == ("cats", {"uri": "images/cats"})
    assert len(data.dataset.digest) == 36
    assert json.loads(data.dataset.profile) == {"num_train": 3}


def test_the_samples_are_shown_on_the_pipelines_page(small: Path) -> None:
    run_all(fid=7.0)
    run = latest()
    client = MlflowClient()
    images = [Path(item.path).name for item in client.list_artifacts(run.info.run_id, "images")]
    assert {name.split("+")[0] for name in images} == {"samples"}
    assert len(images) == 2  # one, and a small one for the page
    assert run.data.tags["mlflow.note.content"].count("get-artifact?path=samples.png&run_") == 1
    path = client.download_artifacts(run.info.run_id, "samples.png")
    with Image.open(path) as picture:
        assert picture.getpixel((0, 0)) == (255, 0, 0)


def test_runs_are_named_by_what_differs(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_param(guidance_scale=2)
    run = run_stage("sample", num_images=4)
    assert pipeline_of(run).info.run_name == "sample.guidance_scale=2"
    stage = MlflowClient().get_run(str(run.id))
    assert stage.info.run_name == "sample \N{MIDDLE DOT} sample.guidance_scale=2"
    begin("an experiment", monkeypatch)
    monkeypatch.setenv("DVC_EXP_NAME", "bonny-frog")
    run = pipeline_of(run_stage("sample", num_images=4))
    assert run.info.run_name == "sample.guidance_scale=2 (bonny-frog)"
    assert run.data.tags["dvc.experiment"] == "bonny-frog"


def test_a_stage_knows_the_parameters_of_the_stages_before_it(small: Path) -> None:
    set_param(guidance_scale=3)
    run = MlflowClient().get_run(str(run_stage("evaluate").id))
    assert run.data.params["sample.guidance_scale"] == "3"
    assert run.data.params["training.lr"] == "0.0001"
    assert "evaluate.seed" not in run.data.params  # which the stage logs when it reads it


def test_other_parameters_make_another_pipeline(small: Path) -> None:
    first = pipeline_of(run_stage("sample"))
    set_param(guidance_scale=2)
    second = pipeline_of(run_stage("sample"))
    set_param()
    again = pipeline_of(run_stage("sample"))
    assert first.info.run_id == again.info.run_id != second.info.run_id
    assert second.data.params["sample.guidance_scale"] == "2"


def test_a_restored_stage_contributes_its_numbers(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_all(fid=7.0)
    set_param(guidance_scale=2)
    begin("second", monkeypatch)
    run_stage("prepare", num_train=3)
    run_stage("sample", num_images=4)
    second = run_stage("evaluate", samples={"classifier_fid": 3.0})
    assert pipeline_of(second).data.metrics["classifier_fid"] == 3.0
    set_param()  # DVC restores the samples and scores, and runs prepare alone
    begin("third", monkeypatch)
    third = latest()
    assert third.data.metrics["classifier_fid"] == 7.0
    assert third.data.metrics["seconds_sample"] == 2.0
    artifacts = {item.path for item in MlflowClient().list_artifacts(third.info.run_id)}
    assert "samples.png" in artifacts


def test_numbers_of_other_code_or_data_are_not_taken(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_all(fid=7.0)
    Path("code/model.py").write_text("model = 2\n")
    begin("other code", monkeypatch)
    assert "classifier_fid" not in latest().data.metrics
    Path("code/model.py").write_text("model = 1\n")
    begin("same code", monkeypatch)
    assert latest().data.metrics["classifier_fid"] == 7.0


def test_numbers_that_came_with_the_repository_are_taken(small: Path) -> None:
    entry = {"cmd": "evaluate", "params": {"params.yaml": {"evaluate.seed": 0}}, "outs": []}
    out = Path("out/evaluate")
    out.mkdir(parents=True)
    (out / "metrics.json").write_text('{"samples": {"classifier_fid": 9.5}}')
    Path("dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": {"evaluate": entry}}))
    assert latest().data.metrics["classifier_fid"] == 9.5
    entry["params"]["params.yaml"]["evaluate.seed"] = 1  # recorded with other parameters
    Path("dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": {"evaluate": entry}}))
    Path("params.yaml").write_text(Path("params.yaml").read_text() + "more: 1\n")
    assert "classifier_fid" not in latest().data.metrics


def test_inputs_are_one_artifact(small: Path) -> None:
    run = run_stage("evaluate")
    client = MlflowClient()
    path = client.download_artifacts(str(run.id), "inputs.json")
    assert json.loads(Path(path).read_text()) == {"code": "1234"}
    assert not [tag for tag in client.get_run(str(run.id)).data.tags if tag.startswith("dvc.dep")]


def test_pictures_along_a_training_are_images_of_steps(small: Path) -> None:
    Image.new("RGB", (16, 16)).save("picture.png")
    with tracking.track("train_generator", {}) as run:
        for step in (10, 20):
            run.step_picture(Path("picture.png"), "previews", step)
    found = [item.path for item in MlflowClient().list_artifacts(str(run.id), "images")]
    steps = {tuple(path.split("/")[1].split("+")[:3]) for path in found}
    assert steps == {("previews", "step", "10"), ("previews", "step", "20")}
    note = MlflowClient().get_run(str(run.id)).data.tags["mlflow.note.content"]
    assert note.count("![previews](get-artifact?path=previews.png&run_uuid=") == 1


def test_a_number_after_a_curve_is_no_second_point(small: Path) -> None:
    with tracking.track("train_generator", {}) as run:
        run.metrics({"loss": 2.0, "images_per_second": 5.0}, 10)
        run.metrics({"loss": 1.0, "images_per_second": 7.0}, 20)
        run.metrics({"loss": 1.0, "parameters": 3})
        run.speeds({"images_per_second": 6.0})
    client = MlflowClient()
    history = client.get_metric_history(str(run.id), "loss")
    assert [(point.step, point.value) for point in history] == [(10, 2.0), (20, 1.0)]
    numbers = client.get_run(str(run.id)).data.metrics
    assert (numbers["images_per_second"], numbers["mean_images_per_second"]) == (7.0, 6.0)
    assert json.loads(Path("work/speeds/train_generator.json").read_text()) == {
        "images_per_second": 6.0
    }


def test_a_killed_stage_continues_its_run_and_a_finished_one_does_not(small: Path) -> None:
    with pytest.raises(KeyboardInterrupt), tracking.track("sample", {}) as killed:
        raise KeyboardInterrupt
    client = MlflowClient()
    assert client.get_run(str(killed.id)).info.status == "KILLED"
    with tracking.track("sample", {}, resume=killed.id) as continued:
        pass
    assert continued.id == killed.id
    with tracking.track("sample", {}, resume=continued.id) as new:
        pass
    assert new.id != killed.id


def test_a_dead_server_is_said_once_in_a_pipeline_and_costs_nothing_more(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    connect = mlflow_store.connect

    def counted() -> mlflow_store.Store:
        asked.append("once")
        return connect()

    monkeypatch.setattr(tracking, "connect", counted)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    run_stage("prepare", num_train=3)
    run_stage("sample")
    said = capsys.readouterr().err
    assert said.count("MLflow is away (no answer from http://127.0.0.1:9); going on, see") == 1
    assert asked == ["once"]
    begin("the next pipeline", monkeypatch)
    run_stage("sample")
    assert "MLflow is away" in capsys.readouterr().err
    assert asked == ["once", "once"]


def test_what_a_server_missed_is_sent_when_it_is_back(
    small: Path, monkeypatch: pytest.MonkeyPatch, tracking_uri: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with tracking.track("train_generator", {}) as run:
        run.metrics({"loss": 2.0}, 10)
        assert run.id is None
        monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
        run.metrics({"loss": 1.5}, 20)  # not asked again so soon
        assert run.id is None
        monkeypatch.setattr(run, "_ask_again", 0.0)
        run.metrics({"loss": 1.0}, 30)
    history = MlflowClient().get_metric_history(str(run.id), "loss")
    assert [(point.step, point.value) for point in history] == [(10, 2.0), (20, 1.5), (30, 1.0)]
    assert MlflowClient().get_run(str(run.id)).info.status == "FINISHED"


def test_what_mlflow_refuses_is_said_and_the_rest_is_logged(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tracking.track("sample", {}) as run:
        run.params({"key": 1})
        run.params({"key": 2})
        run.params({"other": 3})
    assert "MLflow refused a part of sample's run" in capsys.readouterr().err
    assert MlflowClient().get_run(str(run.id)).data.params["other"] == "3"


def test_a_stage_goes_on_without_its_record_and_without_git(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(small))
    with tracking.track("sample", {}) as run:
        subprocess.run(["/bin/rm", "-r", "work/tracking"], check=True)
        run.metrics({"num_images": 4})
        Path("work/tracking/sample.jsonl").unlink()
        Path("work/tracking/sample.jsonl").mkdir()  # can be written by nobody
        run.metrics({"more": 1})
    assert "no record of what sample does" in capsys.readouterr().err
    found = MlflowClient().get_run(str(run.id))
    assert found.data.metrics["more"] == 1
    assert "git.commit" not in found.data.tags


def test_a_repository_of_another_user_is_said_once_with_gits_advice(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    run_stage("prepare")
    run_stage("sample")
    said = capsys.readouterr().err
    assert said.count("no commit is noted with the runs") == 1
    assert f"git config --global --add safe.directory {small}" in said


def test_the_page_of_the_runs_is_said_once(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_stage("prepare")
    run_stage("sample")
    assert capsys.readouterr().err.count("/#/experiments/1/runs") == 1


def test_a_comparison_begins_with_a_score(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_all(fid=7.0)
    set_param(guidance_scale=2)
    begin("second", monkeypatch)
    run_stage("prepare", num_train=3)
    run_stage("sample", num_images=4)
    run = pipeline_of(run_stage("evaluate", samples={"classifier_fid": 3.0}))
    assert next(iter(run.data.metrics)) == "classifier_fid"
