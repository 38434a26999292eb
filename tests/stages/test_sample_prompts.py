"""Samples are of the prompts that section `sample` names when the stage starts."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_project as tiny
import torch
from text_project import text_params
from text_weights import write_weights

from mar.files import seal
from mar.model.saved import load_mar
from mar.sampling.config import SampleConfig
from mar.sampling.store import SampleSet
from mar.text.cache import CaptionedImages, write_captions
from stages import prompts
from stages.prompts import Prompts


CAPTIONS = ["green", "\N{GRINNING FACE}", "a two", "", "seven", "red"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project of which all is made but samples."""
    monkeypatch.chdir(tiny.make_project(tmp_path, {}))
    write_weights(tmp_path)
    Path("out/train_generator/averages").mkdir()
    write_held_out([])
    return tmp_path


def write_held_out(captions: list[str]) -> None:
    names = [f"{number}.png" for number in range(len(captions))]
    images = CaptionedImages(names, [[text] for text in captions])
    texts = Path("out/encode_text/texts")
    texts.mkdir(exist_ok=True)
    write_captions(texts, {"train": CaptionedImages(["a.png"], [["a"]]), "held_out": images})


def load(asked: Any, num_images: int, project: Path) -> Prompts:
    config = SampleConfig.model_validate(text_params(prompts=asked)["sample"])
    digest = seal.digest(Path("out/train_tokenizer/tokenizer.safetensors"))
    model = load_mar(Path("out/train_generator/ema.safetensors"), digest)
    place = Path("out/encode_text")
    files = place / "encoder.json", place / "texts"
    return prompts.load(config, num_images, model, *files, base=project, device=torch.device("cpu"))


def test_shards_of_a_file_that_was_edited_are_made_again(
    project: Path, monkeypatch: pytest.MonkeyPatch, tracking_uri: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    monkeypatch.setenv("DVC_STAGE", "sample")  # what is made stays in the work folder
    sizes = {"num_images": 2, "shard_images": 1, "num_steps": 1}
    Path("params.yaml").write_text(json.dumps(text_params(prompts="prompts.txt", **sizes)))

    def sample(prompt: str) -> list[str] | None:
        Path("prompts.txt").write_text(prompt)
        tiny.run_stage("sample")
        return SampleSet(Path("out/sample/samples")).prompts

    assert sample("a red seven") == ["a red seven"] * 2
    first, last = sorted(project.glob("work/sample/*/*/*.arrow"))
    made = first.stat().st_mtime_ns
    last.unlink()  # as if it had been killed after the first
    assert sample("a blue two") == ["a blue two"] * 2
    assert sample("a red seven") == ["a red seven"] * 2
    assert first.stat().st_mtime_ns == made  # of the same prompts, it is kept


@pytest.mark.parametrize("asked", [None, {"held_out": 6, "seed": 0}])
def test_held_out_captions_of_which_nothing_is_known_are_left_out(
    asked: Any, project: Path
) -> None:
    write_held_out(CAPTIONS)
    found = load(asked, 6, project)
    assert sorted(set(found.texts)) == ["a two", "red", "seven"]
    said = "3 of 6 held-out captions are left out, as nothing of them is known"
    assert found.remarks[0] == said
    if asked is not None:
        assert found.sources is not None
        assert [CAPTIONS[int(Path(name).stem)] for name in found.sources] == found.texts
    with pytest.raises(ValueError, match=r"sample\.prompts: nothing is left of the prompt 'green'"):
        load(CAPTIONS, 6, project)


def test_held_out_captions_of_no_image_are_not_looked_at(project: Path) -> None:
    known = ["a two", "seven", "red"]
    write_held_out([*known, "green", "a green two"])
    found = load(None, 3, project)
    assert (found.texts, found.remarks) == (known, [])
    write_held_out(["green", ""])
    with pytest.raises(ValueError, match="nothing is known of any of 2 held-out captions"):
        load(None, 3, project)
