"""A project with captions: from a folder of images with texts to images of prompts."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_project as tiny
from sample_shards import jpeg, write_tar
from text_project import STAGES, text_params, write_photos

from mar.data.dataset import ImageSet
from mar.files import weights
from mar.sampling.store import SampleSet
from mar.text.cache import Captions
from mar.text.registry import load_encoder, save_encoder
from mar.text.words import Words, WordsConfig
from stages import check
from stages.sampler import load


def test_captions_of_shards_reach_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracking_uri: str
) -> None:
    params = text_params()
    shards = {"source": "webdataset", "path": "shards", "label": None, "caption": "txt"}
    del params["data"]["captions"]
    params["data"] |= {**shards, "class_names": None}
    project = tiny.make_project(tmp_path / "project", params)
    files: dict[str, bytes] = {}
    for number in range(10):
        files[f"{number}.jpg"] = jpeg(number)
        files[f"{number}.txt"] = f"{'red' if number % 2 else 'a blue'} square".encode()
    write_tar(project / "shards" / "00000.tar", files)
    monkeypatch.chdir(project)
    monkeypatch.setenv("MAR_WORKERS", "0")
    for stage in ("prepare", "encode_text"):
        tiny.run_stage(stage)
    cache = Captions(Path("out/encode_text/texts"))
    assert cache.names == ImageSet(Path("out/prepare/manifest.parquet"), "train", 8).names
    encoder = json.loads(Path("out/encode_text/encoder.json").read_text())["encoder"]
    assert sorted(encoder["words"]) == ["a", "blue", "red", "square"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    project = tiny.make_project(tmp_path / "project", text_params())
    write_photos(project)
    monkeypatch.chdir(project)
    monkeypatch.setenv("MAR_WORKERS", "0")
    return project


def test_images_of_prompts_come_from_captions(
    project: Path, tracking_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for stage in STAGES:
        tiny.run_stage(stage)
        if stage == "prepare":
            said = capsys.readouterr().err
            assert said.endswith("prepare: 30 images with captions, 6 held out\n")
    said = capsys.readouterr().err
    assert "24 captions to train on, 5 words, 3.0 tokens in a caption; 0.0% of the captions" in said
    samples = SampleSet(Path("out/sample/samples"))
    assert samples.prompts == ["a red square", "Blue"] * 12
    assert samples.labels.tolist() == [0] * 24
    _, described = weights.load(Path("out/train_generator/ema.safetensors"))
    assert (described["text"]["kind"], described["text"]["size"]) == ("words", 5)
    encoder = load_encoder(Path("out/encode_text/encoder.json"), base=project)
    assert encoder is not None
    assert described["text"]["encoder"] == encoder.identity
    assert Path("out/sample/grid.png").is_file()
    assert len(list(Path("work/previews/train_generator").glob("step-*.png"))) == 2

    # Other prompts, of a file, with words that no caption has; then those of held-out images.
    include = [{"class": "square", "count": 1}]
    texts = ["a purple green square", *("a red square",) * 4]
    lines = [json.dumps({"tag": "colors", "include": include, "prompt": text}) for text in texts]
    Path("prompts.jsonl").write_text("\n".join(lines))
    Path("params.yaml").write_text(json.dumps(text_params(prompts="prompts.jsonl")))
    tiny.run_stage("sample")
    said = capsys.readouterr().err
    assert "1 words of the prompts are not known and left out: purple" in said
    assert "24 images of 5 prompts: not all prompts have equally many" in said
    samples = SampleSet(Path("out/sample/samples"))
    assert samples.prompts == (texts * 5)[:24]
    assert samples.geneval == (lines * 5)[:24]
    drawn = {"held_out": 6, "seed": 1}
    Path("params.yaml").write_text(json.dumps(text_params(prompts=drawn)))
    tiny.run_stage("sample")
    samples = SampleSet(Path("out/sample/samples"))
    assert samples.prompts is not None
    assert samples.sources is not None
    assert len(set(samples.sources)) == 6
    for text, source in zip(samples.prompts, samples.sources, strict=True):
        assert text == Path("photos", source).with_suffix(".txt").read_text()
    Path("params.yaml").write_text(json.dumps(text_params(prompts=drawn | {"held_out": 7})))
    with pytest.raises(ValueError, match=r"sample\.prompts\.held_out: 7 images are .* 6 are held"):
        tiny.run_stage("sample")

    section = WordsConfig(kind="words", min_count=1)
    save_encoder(Path("out/encode_text/encoder.json"), section, Words(["blue", "red"]))
    with pytest.raises(ValueError, match=r"encoder\.json holds .*, the generator takes"):
        tiny.run_stage("sample")
    save_encoder(Path("out/encode_text/encoder.json"), section, encoder)

    images = load(Path("out")).sample(prompts=["a red square"])
    assert images.shape == (1, 8, 8, 3)
    Path("params.yaml").write_text(json.dumps(text_params(prompts=["nonsense"])))
    with pytest.raises(ValueError, match="nothing is left of the prompt 'nonsense'"):
        tiny.run_stage("sample")


@pytest.mark.parametrize(
    ("section", "changes", "complaint"),
    [
        ("sample", {"labels": [0]}, r"sample\.labels: must be null where there is a section text"),
        ("sample", {"prompts": "no.txt"}, r"sample\.prompts: \S*no\.txt cannot be read"),
        ("sample", {"prompts": ["a cat", " "]}, r"sample\.prompts: entry 1, counted from 0: the"),
        ("data", tiny.tiny_params()["data"], r"text: must be null, as images of data\.source"),
    ],
)
def test_sections_that_do_not_fit_texts_are_refused(
    tmp_path: Path, section: str, changes: dict[str, Any], complaint: str
) -> None:
    params = text_params()
    params[section] = changes if section == "data" else params[section] | changes
    (tmp_path / "params.yaml").write_text(json.dumps(params))
    with pytest.raises(ValueError, match=complaint):
        check.check_all(tmp_path / "params.yaml")


def test_prompts_without_texts_are_refused(tmp_path: Path) -> None:
    params: dict[str, Any] = tiny.tiny_params()
    params["sample"]["prompts"] = ["a cat"]
    (tmp_path / "params.yaml").write_text(json.dumps(params))
    with pytest.raises(ValueError, match=r"sample\.prompts: must be null, as section text is null"):
        check.check_all(tmp_path / "params.yaml")
