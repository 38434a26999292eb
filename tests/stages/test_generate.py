"""One line generates pictures of chosen classes: those that the stage `sample` would generate."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mar.evaluation.reference import ReferenceInfo
from mar.evaluation.score_config import EvaluateConfig
from mar.sampling.config import SampleConfig
from mar.sampling.store import SampleSet
from stages import generate, generate_options, params
from stages.sampler import load
from stages.scoring import Scorer


@pytest.fixture
def trained(project: Path, finished: Path) -> Path:
    shutil.copytree(finished / "out", project / "out")
    return project


def pixels(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted(folder.glob("[0-9]*.png"))]


def test_pictures_are_those_of_the_stage(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate.main(["--classes", *"0123456789", "--per-class", "1"])
    found = pixels(trained / "generated/001")
    samples = SampleSet(trained / "out/sample/samples")
    assert len(found) == 10
    for index, picture in enumerate(found):
        expected = samples[index].permute(1, 2, 0).numpy()
        assert np.abs(picture.astype(int) - expected).max() <= 1  # batches round sums otherwise
    assert "generated/001/grid.png and 10 pictures beside it" in capsys.readouterr().out


def test_options_change_the_pictures_and_the_folder(trained: Path) -> None:
    for options in ([], ["--seed", "5"], ["--head", "temperature=0.5"]):
        generate.main(["--classes", "7", "--per-class", "2", *options])
    first, *others = (pixels(trained / f"generated/00{number}") for number in (1, 2, 3))
    assert all(not np.array_equal(first, other) for other in others)
    generate.main(["--classes", "7", "--out", "seven", "--per-class", "1"])
    assert sorted(path.name for path in (trained / "seven").iterdir()) == [
        "0000-7.png",
        "grid.png",
    ]


def test_settings_come_from_the_command_line_and_else_from_params(trained: Path) -> None:
    sampler = load()
    base = params.load("sample", SampleConfig)
    options = generate_options.parse(["--guidance", "3", "--steps", "2", "--head", "num_steps=7"])
    config = sampler.settings(**generate_options.changes(base, options))
    assert (config.guidance_scale, config.num_steps, config.seed) == (3.0, 2, base.seed)
    assert config.model_dump()["head"] == {**base.model_dump()["head"], "num_steps": 7}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--classes", "eleven"],
            "--classes: 'eleven' is neither the name of a class nor a number",
        ),
        (["--classes", "10"], "nor a number from 0 to 9"),
        (["--head", "temprature=1"], "one of num_steps, .*, x_0_bound, .*; did you mean"),
        (["--head", "temperature=cold"], "generate: --head temperature: .*, got 'cold'"),
        (["--guidance", "0.5"], "generate: --guidance: .*, got 0.5"),
        (["--steps", "17"], "generate: --steps: must be 1 to"),
        (["--seed", "-1"], "generate: --seed: .*, got -1"),
        (["--prompt", "a seven"], "generate: --prompt: this generator takes classes and no"),
        (["--out", "out"], "--out: out exists and is not an empty folder"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_written(
    trained: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        generate.main(options)
    assert ended.value.code == 1
    assert re.search(said, capsys.readouterr().err)
    assert not (trained / "generated").exists()


def test_weights_that_are_not_there_are_named(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        generate.main([])
    error = capsys.readouterr().err
    assert "generate: out is not a folder; expected the outputs of a project, which `dvc r" in error


def test_the_scores_of_the_same_pictures_are_those_of_the_stage(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MAR_SAMPLE_BATCH", "12")  # the batches of the stage, whose shards have 12
    generate.main(["--classes", *("0123456789" * 3), "--per-class", "1", "--score"])
    found = json.loads((trained / "generated/001/scores.json").read_text())
    settings = found.pop("evaluate")
    stage = json.loads((trained / "out/evaluate/metrics.json").read_text())
    assert "classifier_fid_30 is too large" in stage.pop("warnings")
    del stage["copies"]  # of training images, of which a reference alone knows nothing
    assert found == stage
    assert settings == params.load("evaluate", EvaluateConfig).model_dump()
    shown = capsys.readouterr()
    assert "30 generated images against 1438 real ones (extractor classifier, reference " in (
        shown.out
    )
    assert "classifier_fid_30 is too large, as 30 images are too few for the covariance of 8" in (
        shown.err
    )


def test_scores_of_few_pictures_say_what_they_lack(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.move(trained / "out/reference", trained / "measured")
    generate.main(["--classes", "7", "3", "--per-class", "1", "--score", "--reference", "measured"])
    found = json.loads((trained / "generated/001/scores.json").read_text())
    assert (found["num_samples"], found["num_reference"], found["num_held_out"]) == (2, 1438, 359)
    assert found["evaluate"]["kid_subset_size"] == 2
    assert found["evaluate"]["neighbours"] == 1
    error = capsys.readouterr().err
    assert "the pictures lack 8 of the 10 classes of the real images" in error
    assert "for want of images, evaluate has kid_subset_size 2 (not 20), neighbours 1 (not 3)" in (
        error
    )


def test_what_cannot_be_scored_is_said_before_anything_is_generated(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*options: str) -> str:
        with pytest.raises(SystemExit):
            generate.main(["--classes", "7", *options])
        assert not (trained / "generated").exists()
        return capsys.readouterr().err

    assert "--score: needs at least 2 pictures, got 1" in refused("--score", "--per-class", "1")
    assert "--reference goes with --score" in refused("--reference", "measured")
    missing = r"measured/extractor/reference.json is missing; `dvc repro reference` makes it, or"
    assert re.search(missing, refused("--score", "--reference", "measured"))
    path = trained / "out/reference/extractor/reference.json"
    info = ReferenceInfo.read(path)
    info.model_copy(update={"image_size": 9}).write(path)
    assert "samples have 8x8 pixels, the real images 9x9" in refused("--score")
    info.model_copy(update={"extractor": "dinov2"}).write(path)
    assert "measured with the extractor 'dinov2', and section reference of" in refused("--score")


def test_a_reference_of_other_classes_is_refused(trained: Path) -> None:
    scorer = Scorer.open(trained / "out/reference", 8, ["crane"] * 3, None)
    pictures = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="the real images have 10 classes, the generator 3"):
        scorer.score(pictures, torch.zeros(4, dtype=torch.long), torch.device("cpu"))
