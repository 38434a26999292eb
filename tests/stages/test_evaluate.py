"""`reference` and `evaluate` score images against real ones, and refuse what cannot be compared."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.nn import functional

from mar.data.dataset import ImageSet
from mar.data.manifest import Manifest
from mar.evaluation.reference import ReferenceInfo
from mar.evaluation.score_config import GenEvalConfig
from mar.evaluation.score_names import bases, find
from mar.files import seal
from mar.sampling.store import SampleSet, shard_path, write_shard
from mar.tokenizers.pixels import PixelsConfig
from mar.tokenizers.registry import build_tokenizer, save_tokenizer
from stages import evaluate, prepare, reconstruct, reference, scene_scores
from stages.conditions import Given
from stages.score_table import text_table
from stages.scoring import Scorer
from stages.stage import Stage
from stages.tracking import Run


PARAMS = """
data: {source: digits, image_size: 16, held_out_fraction: 0.2, seed: 0}
reference:
  extractor: classifier
  split: train
  num_features: 400
  classifier:
    seed: 0
    width: 16
    feature_width: 16
    steps: 80
    batch_size: 64
    lr: 3.0e-3
    weight_decay: 0.05
    shift: 1
    flip: false
    noise: 20.0
sample: {guidance_scale: 1.75}
evaluate:
  is_splits: 1
  is_shuffle: true
  kid_subsets: 10
  kid_subset_size: 100
  neighbours: 3
  bootstrap: 3
  infinity_points: 3
  seed: 0
  geneval: null
  clip_score: null
"""
SCORES = (
    "classifier_fid",
    "classifier_fid_inf",
    "classifier_is",
    "classifier_kid",
    "classifier_mmd",
    "classifier_precision",
    "classifier_recall",
    "classifier_accuracy",
)
MANIFEST = Path("out/prepare/manifest.parquet")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which `reference` has run."""
    folder = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MAR_WORKERS", "0")
        Path("params.yaml").write_text(PARAMS)
        prepare.main(stage("prepare"))
        reference.main(stage("reference"))
    return folder


@pytest.fixture
def project(measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in which the test works."""
    shutil.copytree(measured, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAR_WORKERS", "0")
    return tmp_path


def stage(name: str) -> Stage:
    return Stage(name, Path("out", name), Path("work"), torch.device("cpu"), Run(name))


def metrics(name: str) -> dict[str, dict[str, float]]:
    return json.loads(Path("out", name, "metrics.json").read_text())


def write_samples(images: torch.Tensor, labels: torch.Tensor) -> None:
    for number, part in enumerate(torch.arange(len(images)).split(100)):
        path = shard_path(Path("out/sample/samples"), number)
        first = int(part[0])
        write_shard(
            path, images[part], labels=labels[part], first_index=first, num_classes=10, seed=0
        )


def real_images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    train = ImageSet(MANIFEST, "train", 16)
    chosen = torch.arange(count) * len(train) // count
    return train.stack(chosen.tolist()), train.labels[chosen]


@pytest.mark.usefixtures("project")
def test_real_images_score_well_and_blurred_ones_badly() -> None:
    images, labels = real_images(250)
    write_samples(images, labels)
    evaluate.main(stage("evaluate"))
    good = metrics("evaluate")
    blurred = functional.avg_pool2d(images.float(), 5, 1, 2).to(torch.uint8)
    write_samples(blurred, labels)
    evaluate.main(stage("evaluate"))
    bad = metrics("evaluate")

    assert bases(good["samples"]) == bases(good["held_out"]) == list(SCORES)
    assert good["held_out"] == bad["held_out"] == metrics("reference")["held_out"]
    assert good["held_out"]["classifier_accuracy"] > 0.75  # eighty steps are few
    assert good["samples"]["classifier_precision"] > 0.95  # they are the real images
    assert bad["samples"]["classifier_fid_250"] > 3 * good["samples"]["classifier_fid_250"]
    assert good["held_out"]["classifier_fid_359"] > 0
    assert "classifier_fid_250 is too large, as 250 images are too few" in good["warnings"]
    assert "the reference has 1438 images, which are few for 16 features" in good["warnings"]
    assert bad["samples"]["classifier_accuracy"] < good["samples"]["classifier_accuracy"]
    assert good["reference"] == bad["reference"] == metrics("reference")["reference"]
    assert (good["num_samples"], good["num_reference"], good["num_held_out"]) == (250, 1438, 359)

    # Half of the samples are real images whose features were kept, so their own nearest ones.
    assert good["copies"]["num_compared"] == 400
    assert good["copies"]["training_copies"] > 10 * bad["copies"]["training_copies"]
    assert good["copies"]["near_duplicates"] < 0.05

    page = Path("out/evaluate/report.html").read_text()
    assert "Evaluation of 250 generated images" in page
    assert page.count("data:image/png;base64,") == 3  # there is no grid of samples, and no training
    assert str(good["reference"]) in page
    assert re.search(r"guidance_scale</th><td><code>1\.75<", page)
    with_source = Path("work/reports/evaluate.html").read_text()
    assert "commit" in with_source
    assert "commit" not in page

    table = pd.read_csv("out/evaluate/scores.csv").set_index("metric")
    assert list(table.index) == list(SCORES)  # whatever the counts of both columns are
    for name, scores in (("samples", bad["samples"]), ("held_out", bad["held_out"])):
        values, spreads = table[name].to_dict(), table[f"{name}_std"].to_dict()
        assert values["classifier_fid"] == pytest.approx(find(scores, "classifier_fid"))
        spread = find(scores, "classifier_fid", spread=True)
        assert spreads["classifier_fid"] == pytest.approx(spread)
    pictures = {path.name for path in Path("out/evaluate/pictures").iterdir()}
    assert pictures == {"confusion.png", "farthest.png", "nearest.png"}
    curves = pd.read_csv("out/reference/curves.csv")
    assert list(curves.columns) == ["step", "loss", "accuracy"]
    assert curves["step"].tolist() == list(range(10, 90, 10))
    assert curves["loss"].iloc[-1] < 0.8 * curves["loss"].iloc[0]


@pytest.mark.usefixtures("project")
def test_no_class_name_costs_a_result() -> None:
    names = [
        "$1_$5",
        "two\nlines",
        r"\alpha",
        "\N{GRINNING FACE}",
        "",
        "$",
        "_",
        "^",
        "{",
        "a" * 500,
    ]
    Path("out/prepare/classes.json").write_text(json.dumps(names))
    write_samples(*real_images(100))
    MANIFEST.unlink()  # which has the digits' names
    evaluate.main(stage("evaluate"))
    pictures = Path("out/evaluate/pictures")
    assert {path.name for path in pictures.iterdir()} == {
        "confusion.png",
        "farthest.png",
        "nearest.png",
    }


@pytest.mark.usefixtures("project")
def test_a_picture_that_fails_is_reported_after_the_scores(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("out/prepare/classes.json").write_text('["too", "few", "names"]')
    write_samples(*real_images(100))
    MANIFEST.unlink()
    evaluate.main(stage("evaluate"))
    extrapolated = "classifier_fid_inf"  # 100 images are too few for it
    expected = [name for name in SCORES if name != extrapolated]
    assert bases(metrics("evaluate")["samples"]) == expected
    assert "evaluate: cannot draw farthest.png: IndexError" in capsys.readouterr().err
    with Image.open("out/evaluate/pictures/farthest.png") as picture:
        assert picture.size == (600, 40)  # the reason


@pytest.mark.usefixtures("project")
def test_images_of_one_class_are_scored_by_an_extractor_called_untrained() -> None:
    table = pq.read_table(MANIFEST)
    labels = table.schema.get_field_index("label")
    zeros = pa.array([0] * len(table), table.schema.field(labels).type)
    table = table.set_column(labels, table.schema.field(labels), zeros)
    metadata = {**table.schema.metadata, b"class_names": b'["digit"]'}
    table = table.replace_schema_metadata(metadata)
    with seal.sealing(MANIFEST) as partial, pq.ParquetWriter(partial, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({seal.KEY: seal.BLANK})
    Path("out/prepare/classes.json").write_text('["digit"]')
    reference.main(stage("reference"))
    write_samples(*real_images(160))
    evaluate.main(stage("evaluate"))
    assert metrics("evaluate")["extractor"] == "untrained"
    expected = [f"untrained_{it}" for it in ("fid", "fid_inf", "kid", "mmd", "precision", "recall")]
    assert bases(metrics("evaluate")["samples"]) == expected
    assert bases(metrics("reference")["held_out"]) == expected


@pytest.mark.usefixtures("project")
def test_a_reference_made_again_is_the_same() -> None:
    first = ReferenceInfo.read(Path("out/reference/extractor/reference.json"))
    files = {path.name: path.read_bytes() for path in Path("out/reference/extractor").iterdir()}
    reference.main(stage("reference"))
    assert ReferenceInfo.read(Path("out/reference/extractor/reference.json")) == first
    again = {path.name: path.read_bytes() for path in Path("out/reference/extractor").iterdir()}
    assert again == files
    assert set(files) == {
        "classifier.safetensors",
        "copies.json",
        "reference.json",
        "statistics.safetensors",
    }


@pytest.mark.usefixtures("project")
def test_samples_of_another_size_are_refused() -> None:
    images, labels = real_images(120)
    write_samples(images.repeat_interleave(2, 2).repeat_interleave(2, 3), labels)
    with pytest.raises(ValueError, match="samples have 32x32 pixels, the real images 16x16"):
        evaluate.main(stage("evaluate"))


@pytest.mark.usefixtures("project")
def test_a_few_samples_are_scored_with_settings_that_they_bear(
    capsys: pytest.CaptureFixture[str],
) -> None:
    images, labels = real_images(16)
    write_samples(images[:5], labels[:5])
    evaluate.main(stage("evaluate"))
    found = metrics("evaluate")
    assert find(found["samples"], "classifier_kid") == found["samples"]["classifier_kid"]
    assert "classifier_fid_5" in found["samples"]
    said = capsys.readouterr().err
    assert "for want of samples, evaluate has kid_subset_size 2 (not 100)" in said
    lacking = 10 - len(labels[:5].unique())
    assert f"evaluate: the pictures lack {lacking} of the 10 classes of the real images" in said
    write_samples(images[:1], labels[:1])
    with pytest.raises(ValueError, match=r"scores need 2 images or more, got 1 \(samples\)"):
        evaluate.main(stage("evaluate"))


@pytest.mark.usefixtures("project")
def test_the_held_out_split_may_be_the_reference_and_smaller_than_a_subset(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.rmtree("out/reference")
    text = PARAMS.replace("split: train", "split: held_out")
    Path("params.yaml").write_text(text.replace("kid_subset_size: 100", "kid_subset_size: 360"))
    reference.main(stage("reference"))
    found = metrics("reference")
    assert str(found["reference"]).startswith("held_out_split-359-16px-classifier-")
    assert (found["held_out"], found["num_held_out"], found["num_reference"]) == ({}, 0, 359)
    assert not Path("out/reference/extractor/copies.json").exists()  # nothing is copied from these
    write_samples(*real_images(400))
    evaluate.main(stage("evaluate"))
    assert metrics("evaluate")["samples"]["classifier_fid_400"] > 0
    assert "evaluate has kid_subset_size 179 (not 360)" in capsys.readouterr().err
    table = pd.read_csv("out/evaluate/scores.csv").set_index("metric")
    assert list(table["held_out"].dropna()) == []


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("root", [None, "/elsewhere"])
def test_missing_inception_weights_are_named_by_every_stage(
    root: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a temporary copy of the repository, DVC says where that is."""
    if root is not None:
        monkeypatch.setenv("DVC_ROOT", root)
    settings = {
        "extractor": "inception",
        "split": "train",
        "num_features": 400,
        "weights": "inception.pth",
        "weights_sha256": None,
        "statistics": None,
        "statistics_sha256": None,
    }
    start, _, end = PARAMS.partition("reference:")
    text = f"{start}reference: {json.dumps(settings)}\nsample:{end.partition('sample:')[2]}"
    Path("params.yaml").write_text(text)
    write_samples(*real_images(100))
    pixels = build_tokenizer(PixelsConfig(kind="pixels"))
    save_tokenizer(Path("out/train_tokenizer/tokenizer.safetensors"), pixels)
    message = rf"reference\.weights: {root or Path.cwd()}/inception\.pth is missing"
    for main in (reference.main, reconstruct.main, evaluate.main):
        with pytest.raises(ValueError, match=message):
            main(stage(main.__module__.rpartition(".")[2]))


def test_scenes_are_judged_by_what_they_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAR_WORKERS", "0")
    scenes = (
        "data: {source: scenes, image_size: 24, tasks: [single_object, colors], "
        "whole_captions: false, reading_order: 0.5, num_train: 60, num_held_out: 40, seed: 0}"
    )
    digits = PARAMS.splitlines()[1]
    Path("params.yaml").write_text(PARAMS.replace(digits, scenes).replace("steps: 80", "steps: 1"))
    prepare.main(stage("prepare"))
    reference.main(stage("reference"))
    real = ImageSet(MANIFEST, "held_out", 24)
    captions = [texts[0] for texts in Manifest(MANIFEST, "held_out").captions() or []]
    prompts = [*captions[:-1], "a cat"]
    write_shard(
        shard_path(Path("out/sample/samples"), 0),
        real.stack(list(range(40))),
        labels=torch.zeros(40, dtype=torch.int64),
        first_index=0,
        num_classes=1,
        seed=0,
        prompts=prompts,
    )
    evaluate.main(stage("evaluate"))
    found: Any = metrics("evaluate")["scenes"]
    assert set(found["tasks"]) == {"single_object", "colors"}
    assert found["overall"] > 0.9
    assert found["ceiling"]["overall"] > 0.9
    assert found["floor"]["overall"] < 0.4
    assert (found["num_judged"], found["num_not_understood"]) == (39, 1)
    assert "1 of 40 prompts are no captions of scenes" in capsys.readouterr().err
    report = Path("out/evaluate/report.md").read_text()
    share, spread = found["tasks"]["colors"], found["tasks_std"]["colors"]
    floor, ceiling = (found[name]["tasks"]["colors"] for name in ("floor", "ceiling"))
    assert f"{share:.1%} ± {spread:.1%} ({floor:.1%} to {ceiling:.1%})" in report
    pairs = found["seen"]["colors"]
    assert pairs["num"] + found.get("unseen", {}).get("colors", {}).get("num", 0) == 20 - 1
    assert f"{pairs['share']:.1%} ± {pairs['share_std']:.1%} of {pairs['num']}" in report

    # A program that is no stage scores the same images alike.
    samples, cpu = SampleSet(Path("out/sample/samples")), torch.device("cpu")
    opened = Scorer.open(Path("out/reference"), 24, ["scene"], None)
    scores, said = opened.with_prompts(samples, cpu).score(
        samples.stack(list(range(40))), samples.labels, cpu
    )
    assert scores["scenes"] == found
    assert "1 of 40 prompts are no captions of scenes, so these are not judged" in said
    lines = text_table(scene_scores.table(scores["scenes"]))
    assert lines[0] == "What scenes show:"
    shown = [" ".join(line.split()) for line in lines]
    assert f"colors {share:.1%} ± {spread:.1%} ({floor:.1%} to {ceiling:.1%})" in shown

    # GenEval's models are opened for lines of its file alone.
    geneval = GenEvalConfig(detector="gone", clip="gone")
    config = opened.config.model_copy(update={"geneval": geneval})
    with_models = replace(opened, config=config)
    assert with_models.with_prompts(samples, cpu).by_prompts == {}
    line = '{"tag": "colors", "include": [{"class": "dog", "count": 1}], "prompt": "a dog"}'
    asked = Given(samples.labels, ["a dog"], samples.labels, [], ["a dog"], [line])
    with pytest.raises(
        ValueError, match=r"evaluate\.geneval\.clip: \S+gone.config\.json is missing"
    ):
        with_models.with_prompts(asked, cpu)
