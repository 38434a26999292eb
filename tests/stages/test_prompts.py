"""Images of prompts come from the command line, from Python and from the page, and are the same."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_encoders
import torch
from PIL import Image
from starlette.testclient import TestClient
from text_weights import SLOTS, write_weights

from mar.text.frozen import FrozenConfig
from mar.text.registry import load_encoder, save_encoder
from mar.text.words import Words, WordsConfig
from stages import export, generate
from stages.page_app import make_app
from stages.sampler import Sampler, load


PROMPTS = ["a red seven left of a blue two", "a blue two"]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = tmp_path_factory.mktemp("texts")
    write_weights(project)
    return project / "out"


@pytest.fixture(scope="module")
def sampler(out: Path) -> Sampler:
    return load(out)


@pytest.mark.filterwarnings("ignore:1 of 2 prompts have more than")
def test_images_of_the_program_are_those_of_python(
    out: Path, sampler: Sampler, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = sampler.sample(prompts=[PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]], seed=5)
    assert not np.array_equal(images[0], images[1])
    monkeypatch.chdir(out.parent)
    Path("prompts.txt").write_text(f"\n{PROMPTS[1]}\n")
    options = ["--prompt", PROMPTS[0], "--prompts", "prompts.txt", "--per-prompt", "2"]
    generate.main([*options, "--seed", "5", "--out", "pictures"])
    rows = [json.loads(row) for row in Path("pictures/metadata.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]]
    assert rows[2]["file_name"] == "0002-a_blue_two.png"
    for image, row in zip(images, rows, strict=True):
        assert np.array_equal(image, np.asarray(Image.open(Path("pictures", row["file_name"]))))
    said = capsys.readouterr().err
    assert f"1 of 2 prompts have more than {SLOTS} tokens (generator.condition_tokens)" in said


def test_a_generator_that_takes_prompts_names_no_classes(sampler: Sampler) -> None:
    assert sampler.class_names == []


def test_another_prompt_gives_another_image(sampler: Sampler) -> None:
    images = [sampler.sample(prompts=[text]) for text in ("a red seven", "A  red Seven", "a two")]
    assert np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])


def test_a_part_is_drawn_again_as_of_a_prompt(sampler: Sampler) -> None:
    images = sampler.sample(prompts=["a red seven"])
    everything = np.ones((8, 8), dtype=bool)
    drawn = sampler.inpaint(images, everything, prompts=["a two"])
    assert np.array_equal(drawn, sampler.sample(prompts=["a two"]))
    with pytest.raises(ValueError, match="got 1 images and 2 prompts"):
        sampler.inpaint(images, everything, prompts=["a two", "a seven"])


def test_words_that_are_not_known_are_warned_of(sampler: Sampler) -> None:
    with pytest.warns(UserWarning, match="1 words of the prompts are not known .* green") as found:
        images = sampler.sample(prompts=["a green seven"])
    assert found[0].filename == __file__  # the caller's line
    assert np.array_equal(images, sampler.sample(prompts=["a seven"]))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"classes": ["3"]}, "classes: this generator takes prompts and no classes"),
        ({}, "expected prompts, got neither of classes and prompts"),
        ({"classes": [3], "prompts": ["a"]}, "expected prompts, got both of classes and prompts"),
        ({"prompts": "a two"}, "prompts: must be a list of texts, got 'a two'"),
        ({"prompts": []}, r"prompts: must be a list of texts, got \[\]"),
        ({"prompts": ["a", 2]}, "prompts: 2 is no text"),
        ({"prompts": ["a", " "]}, r"prompts: nothing is left of the prompt ''$"),
        ({"prompts": ["Green"]}, "nothing is left of the prompt 'Green', as none of green is know"),
        ({"prompt": "a two"}, "and no 'prompt'; did you mean 'prompts'"),
        ({"clases": ["3"]}, "and no 'clases'; did you mean 'classes'"),
    ],
)
def test_what_is_no_prompt_is_refused(sampler: Sampler, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        sampler.sample(**asked)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--classes", "3"], "--classes: this generator takes prompts and no classes"),
        ([], "this generator takes prompts: give --prompt TEXT, or --prompts FILE"),
        (["--prompt", ""], "generate: --prompt: nothing is left of the prompt ''"),
        (
            ["--prompts", "none.txt"],
            "generate: --prompts: none.txt cannot be read: No such file or directory\n",
        ),
        (
            ["--prompt", "a two", "--prompts", "bad.txt"],
            "generate: --prompts: bad.txt, line 2: nothing is left of the prompt 'Green', as none",
        ),
        (["--prompt", "a two", "--classes", "3"], "--classes goes with neither --prompt nor"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(out.parent)
    Path("bad.txt").write_text("a two\nGreen\n")
    with pytest.raises(SystemExit):
        generate.main(options)
    assert re.search(said, capsys.readouterr().err)
    assert not Path("generated").exists()


def test_the_page_asks_for_a_prompt(sampler: Sampler) -> None:
    client = TestClient(make_app(sampler, only_loopback=True), base_url="http://localhost")
    model = client.get("/model").json()
    assert (model["takes_prompts"], model["classes"]) == (True, [])
    asked = {key: model[key] for key in ("guidance_scale", "num_steps", "reconstruction_steps")}
    asked |= {"label": None, "num_images": 2, "seed": 5, "head": {}, "on_the_way": False}
    asked |= {"image": None, "mask": None, "prompt": "a green\n two"}
    last = json.loads(client.post("/generate", json=asked).text.splitlines()[-1])
    assert last["warnings"] == ["1 words of the prompts are not known and left out: green"]
    urls = [url.partition(",")[2] for url in last["pictures"]]
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(url)))) for url in urls]
    assert np.array_equal(np.stack(pictures), sampler.sample(prompts=["a two"] * 2, seed=5))
    refused = client.post("/generate", json=asked | {"prompt": None, "label": "3"})
    assert "classes: this generator takes prompts and no classes" in refused.json()["error"]


def test_an_encoder_of_other_words_is_refused(tmp_path: Path) -> None:
    write_weights(tmp_path)
    section = WordsConfig(kind="words", min_count=1)
    path = tmp_path / "out/encode_text/encoder.json"
    save_encoder(path, section, Words(["a"]))
    with pytest.raises(
        ValueError, match=r"encoder.json holds .*size=1, .*, the generator .*size=7"
    ):
        load(tmp_path / "out")
    save_encoder(path, None, None)
    assert load_encoder(path, base=tmp_path) is None
    with pytest.raises(ValueError, match=r"encoder.json holds no encoder, the generator takes"):
        load(tmp_path / "out")


def test_a_generation_is_of_its_own_words_alone(sampler: Sampler) -> None:
    """Several prompts at once are encoded once each, in their order."""
    given = sampler.given(prompts=["a two", "a seven", "a two"])
    alone = [sampler.given(prompts=[text]).tokens for text in ("a two", "a seven", "a two")]
    assert torch.equal(given.tokens, torch.cat(alone))


@pytest.mark.filterwarnings("ignore:1 words of the prompts are not known")
def test_an_exported_generator_has_all_that_prompts_need(
    out: Path, sampler: Sampler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(out.parent)
    told = export.export(tmp_path / "files")
    assert "stages.generate takes them with prompts" in told
    monkeypatch.chdir(tmp_path)
    files: dict[str, Any] = {
        "generator": "files/checkpoint-last.pth",
        "tokenizer": "files/kl16.ckpt",
    }
    asked = {"prompts": ["a red seven", "a green two"], "seed": 3}
    assert np.array_equal(load(**files).sample(**asked), sampler.sample(**asked))
    raw = load(**files, ema=False)
    assert raw.weights.sample == sampler.weights.sample
    kept, own = raw.weights.mar.state_dict(), sampler.weights.mar.state_dict()
    assert kept.keys() == own.keys()
    files["tokenizer"] = files["generator"]
    with pytest.raises(ValueError, match="holds a generator, expected a tokenizer"):
        load(**files)


def test_prompts_of_a_frozen_encoder_are_drawn_and_exported_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    tiny_encoders.write_encoder(project / "t5")
    section = FrozenConfig.model_validate(tiny_encoders.section(Path("t5")))
    write_weights(project, section, section.learn([], base=project))
    asked = {"prompts": ["a red seven", "a blue two"], "seed": 3}
    images = load(project / "out").sample(**asked)
    assert not np.array_equal(images[0], images[1])
    with pytest.raises(ValueError, match="prompts: nothing is left of the prompt ''"):
        load(project / "out").sample(prompts=[""])

    monkeypatch.chdir(project)
    generate.main(["--prompt", "a red seven", "--per-prompt", "1", "--seed", "3"])
    picture = np.asarray(Image.open("generated/001/0000-a_red_seven.png"))
    assert np.abs(picture.astype(int) - images[0]).max() <= 1  # batches round sums otherwise
    export.export(tmp_path / "files")
    files: dict[str, Any] = {"generator": tmp_path / "files/checkpoint-last.pth"}
    files["tokenizer"] = tmp_path / "files/kl16.ckpt"
    assert np.array_equal(load(**files).sample(**asked), images)
    monkeypatch.chdir(tmp_path)  # where the encoder's folder is not
    with pytest.raises(ValueError, match=r"text\.path: .*t5"):
        load(**files).sample(**asked)
