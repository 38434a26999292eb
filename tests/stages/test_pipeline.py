"""The nine stages work one after another, and refuse inputs that do not belong together."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny_project as tiny
import torch
from mlflow.tracking import MlflowClient
from PIL import Image

from mar.evaluation.score_names import bases
from mar.files.atomic import digest
from mar.latents.cache import LatentCache
from mar.latents.info import LatentsInfo
from mar.model.saved import load_mar
from mar.sampling.store import SampleSet
from mar.tokenizers.kl import AutoencoderKL
from mar.tokenizers.registry import load_tokenizer, save_tokenizer
from stages import summary


def metrics(project: Path, stage: str) -> dict[str, Any]:
    return json.loads((project / "out" / stage / "metrics.json").read_text())


def test_the_cache_holds_every_training_image(finished: Path) -> None:
    info = LatentsInfo.read(finished / "out/encode/latents.json")
    cache = LatentCache(finished / "out/encode/latents", info)
    assert len(cache) == metrics(finished, "prepare")["num_train"] == info.count
    assert len(set(cache.names)) == info.count
    assert info.tokenizer == digest(finished / "out/train_tokenizer/tokenizer.safetensors")


def test_samples_are_balanced_and_numbered(finished: Path) -> None:
    samples = SampleSet(finished / "out/sample/samples")
    assert len(samples) == 30
    assert samples.labels.bincount().tolist() == [3] * 10
    with Image.open(finished / "out/sample/grid.png") as grid:
        assert grid.width > 10 * 64


def test_curves_hold_the_points_asked_for(finished: Path) -> None:
    with (finished / "out/train_generator/curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(float(row["step"])) for row in rows] == [2, 4, 6]
    folder = finished / "work/previews/train_generator"  # pictures are no outputs
    previews = sorted(path.name for path in folder.glob("step-*.png"))
    assert previews == ["step-0000003.png", "step-0000006.png"]


def test_speeds_are_kept_beside_the_outputs(finished: Path) -> None:
    for stage, names in {"train_generator": {"images_per_second"}, "evaluate": set[str]()}.items():
        speeds = json.loads((finished / f"work/speeds/{stage}.json").read_text())
        assert speeds.keys() == {"seconds", "peak_memory_gib"} | names
        assert all(speed > 0 for speed in speeds.values())


def test_the_tokenizers_curves_tell_how_well_it_gives_held_out_images_back(finished: Path) -> None:
    table = pd.read_csv(finished / "out/train_tokenizer/held_out_psnr.csv")
    assert table["step"].tolist() == [2, 4]
    first, last = table["held_out_psnr"]
    assert first != last
    final = metrics(finished, "reconstruct")["psnr"]  # of all held-out images
    assert last == pytest.approx(final, abs=1)


def test_scores_stand_beside_those_of_real_images(finished: Path) -> None:
    scores = metrics(finished, "evaluate")
    assert scores["extractor"] == "classifier"
    real = [name for name in bases(scores["held_out"]) if not name.endswith("_inf")]
    assert bases(scores["samples"]) == real  # 30 samples are too few to extrapolate from
    assert scores["samples"]["classifier_fid_30"] > scores["held_out"]["classifier_fid_359"]
    text = summary.summarise(finished / "out")
    row = next(line.split() for line in text.splitlines() if "classifier_fid_30" in line)
    assert row[2] == "+-"
    assert float(row[4]) == pytest.approx(scores["held_out"]["classifier_fid_359"], abs=1e-4)
    assert "grid.png" in text


def test_reconstructions_are_scored_against_a_named_reference(finished: Path) -> None:
    found = metrics(finished, "reconstruct")
    reference = metrics(finished, "reference")
    assert {name: found[name] for name in ("extractor", "reference", "num_reference")} == {
        name: reference[name] for name in ("extractor", "reference", "num_reference")
    }
    assert found["num_images"] == metrics(finished, "prepare")["num_held_out"]
    assert found["classifier_rfid_held_out_359"] > 0
    # The tokenizer is hardly trained: its images are further from real ones than those held out.
    real = reference["held_out"]["classifier_fid_359"]
    assert found["classifier_rfid_train_359"] > real
    encoded = metrics(finished, "encode")
    assert found["latents"]["std"] == pytest.approx(encoded["std"], rel=0.1)
    assert found["latents"]["kl"] == pytest.approx(encoded["kl"], rel=0.1)
    with Image.open(finished / "out/reconstruct/reconstructions.png") as picture:
        assert picture.height > 3 * 64


def test_every_stage_has_a_run_below_the_pipelines(finished: Path, tracking_uri: str) -> None:
    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name("mar")
    assert experiment is not None
    (pipeline,) = client.search_runs([experiment.experiment_id], "tags.`mar.pipeline` = 'test'")
    found = client.search_runs(
        [experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{pipeline.info.run_id}'"
    )
    children = {run.data.tags["mar.stage"]: run for run in found}
    assert children.keys() == {
        "prepare", "train_tokenizer", "reconstruct", "encode", "encode_text", "train_generator",
        "sample", "reference", "evaluate",
    }  # fmt: skip
    parents = {run.data.tags["mlflow.parentRunId"] for run in children.values()}
    assert len(parents) == 1
    assert {run.info.status for run in children.values()} == {"FINISHED"}
    assert client.get_run(parents.pop()).info.status == "FINISHED"
    trained = children["train_generator"]
    assert trained.data.params["training.steps"] == "6"
    assert "loss" in trained.data.metrics
    inputs = client.download_artifacts(trained.info.run_id, "inputs.json")
    assert "out/encode/latents.json" in json.loads(Path(inputs).read_text())
    evaluated = children["evaluate"].data
    assert evaluated.metrics["samples/classifier_fid_30"] > 0
    for tags in (evaluated.tags, pipeline.data.tags):
        assert tags["mar.reference"] == metrics(finished, "reference")["reference"]
        assert (tags["mar.extractor"], tags["mar.num_samples"]) == ("classifier", "30")
        assert "classifier_fid_30 is too large, as 30 images" in tags["mar.warnings"]
    assert "classifier_fid_30" in pipeline.data.metrics
    pictures = client.list_artifacts(children["sample"].info.run_id)
    assert "grid.png" in [picture.path for picture in pictures]


def test_finished_stages_leave_no_work_behind(finished: Path) -> None:
    left = [path for path in (finished / "work").glob("*/*") if path.is_dir()]
    assert {path.parent.name for path in left} == {"previews"}


def test_the_generator_refuses_latents_of_another_tokenizer(finished: Path, project: Path) -> None:
    shutil.copytree(finished / "out", project / "out")
    path = project / "out/train_tokenizer/tokenizer.safetensors"
    other = load_tokenizer(path)
    assert isinstance(other, AutoencoderKL)
    with torch.no_grad():
        other.decoder.conv_in.weight.add_(1)
    save_tokenizer(path, other)
    with pytest.raises(ValueError, match="the latent cache does not fit: tokenizer is "):
        tiny.run_stage("train_generator")
    with pytest.raises(ValueError, match="the latent cache does not fit: tokenizer is "):
        tiny.run_stage("sample")


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("latents", "dtype", "float32", "dtype is 'float16', expected 'float32'"),
        ("latents", "flips", False, "flips is True, expected False"),
        ("data", "image_size", 16, "transform is 'ADM centre crop to 8 px', expected"),
    ],
)
def test_the_generator_refuses_another_cache(
    finished: Path, project: Path, section: str, key: str, value: object, message: str
) -> None:
    shutil.copytree(finished / "out", project / "out")
    params = tiny.tiny_params()
    params[section][key] = value
    (project / "params.yaml").write_text(json.dumps(params))
    with pytest.raises(ValueError, match=message):
        tiny.run_stage("train_generator")


def test_a_generator_says_whose_latents_it_knows(finished: Path) -> None:
    path = finished / "out/train_generator/ema.safetensors"
    with pytest.raises(ValueError, match="was trained on latents of tokenizer"):
        load_mar(path, "0" * 64)


def test_a_typo_in_a_later_section_stops_the_first_stage(project: Path) -> None:
    params = tiny.tiny_params()
    params["evaluate"]["is_split"] = params["evaluate"].pop("is_splits")
    (project / "params.yaml").write_text(json.dumps(params))
    with pytest.raises(ValueError, match=r"evaluate\.is_split is not a known key; did you mean"):
        tiny.run_stage("prepare")
    assert not (project / "out").exists()


def test_a_missing_input_is_named(project: Path) -> None:
    with pytest.raises(ValueError, match=r"out/prepare/manifest\.parquet is missing"):
        tiny.run_stage("encode")


def test_sampling_is_the_same_for_any_batch_size(
    finished: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished / "out", project / "out")
    monkeypatch.setenv("MAR_SAMPLE_BATCH", "5")
    tiny.run_stage("sample")
    one, other = (SampleSet(folder / "out/sample/samples") for folder in (finished, project))
    indices = list(range(30))
    difference = one.stack(indices).int() - other.stack(indices).int()
    assert difference.abs().max() <= 1
