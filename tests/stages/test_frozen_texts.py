"""A project whose texts a frozen language model encodes, in files or while it is trained."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import stages_in_processes
import text_project
import tiny_encoders
import tiny_project as tiny
import torch
from processes import in_processes

from mar.files import atomic, weights
from mar.sampling.store import SampleSet
from mar.text.cache import Captions
from mar.text.registry import load_encoder
from mar.text.token_files import TokenFiles
from stages import launch, previews
from stages.disk import room_for_embeddings
from stages.sampler import load


CACHE = {"dtype": "float32", "shard_captions": 2}


def write_params(**text: Any) -> None:
    params = text_project.text_params(prompts=["a red square", "blue"], num_images=4)
    params["text"] = tiny_encoders.section(Path("t5"), **{"cache": CACHE, **text})
    Path("params.yaml").write_text(json.dumps(params))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracking_uri: str) -> Path:
    project = tiny.make_project(tmp_path / "project", text_project.text_params())
    monkeypatch.chdir(project)
    monkeypatch.setenv("MAR_WORKERS", "0")
    monkeypatch.setattr(previews, "SHOWN", 1)
    text_project.write_photos(project)
    tiny_encoders.write_encoder(project / "t5")
    return project


def trained() -> dict[str, torch.Tensor]:
    return weights.load(Path("out/train_generator/generator.safetensors"))[0]


def test_embeddings_of_files_and_of_each_batch_train_the_same_generator(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_params()
    for stage in text_project.STAGES:
        tiny.run_stage(stage)
    said = capsys.readouterr().err
    assert "24 captions to train on, t5 with 12 channels (SHA-256 " in said
    assert "4.0 tokens in a caption; 100.0% of the captions have more than 3 tokens" in said
    files = sorted(path.name for path in Path("out/encode_text/texts").iterdir())
    assert files == ["captions.arrow", "images.arrow", "tokens-00000.arrow", "tokens-00001.arrow"]
    assert "2 of 2 prompts have more than 3 tokens" not in said
    assert "1 of 2 prompts have more than 3 tokens" in said
    _, described = weights.load(Path("out/train_generator/ema.safetensors"))
    encoder = load_encoder(Path("out/encode_text/encoder.json"), base=project)
    assert encoder is not None
    assert described["text"] == {"kind": "embeddings", "size": 12, "encoder": encoder.identity}
    samples = SampleSet(Path("out/sample/samples"))
    assert samples.prompts == ["a red square", "blue"] * 2
    assert len(list(Path("work/previews/train_generator").glob("step-*.png"))) == 2
    assert "no picture" not in said
    with pytest.warns(UserWarning, match="1 of 1 prompts have more than 3 tokens"):
        image = load(Path("out")).sample(prompts=["a red square"])[0]
    assert (image == samples[0].permute(1, 2, 0).numpy()).all()

    of_files = trained()
    write_params(cache=None)
    for stage in ("encode_text", "train_generator"):
        tiny.run_stage(stage)
    assert len(list(Path("out/encode_text/texts").glob("tokens-*"))) == 0
    for name, value in trained().items():
        assert torch.allclose(value, of_files[name], atol=1e-5), name

    # Another encoder in the same place is not taken for it.
    tiny_encoders.write_encoder(project / "t5", seed=1)
    with pytest.raises(ValueError, match=r"text\.path: .* encode_text has to run again"):
        tiny.run_stage("sample")


def test_tokens_that_a_killed_start_left_are_not_taken_for_those_of_another_encoder(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_params()
    tiny.run_stage("prepare")
    with monkeypatch.context() as patch:
        patch.setattr(atomic, "publish_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            tiny.run_stage("encode_text")
    assert len(list(Path("work/encode_text").rglob("tokens-*.arrow"))) == 2
    tiny_encoders.write_encoder(project / "t5", seed=1)
    tiny.run_stage("encode_text")
    encoder = load_encoder(Path("out/encode_text/encoder.json"), base=project)
    assert encoder is not None
    texts = Path("out/encode_text/texts")
    captions = Captions(texts)
    expected = encoder.encode(captions.texts(torch.arange(captions.num_trained)), 3)
    found = TokenFiles(texts, 3, encoder.identity).read(torch.arange(captions.num_trained))
    assert torch.allclose(found, expected, atol=1e-5)


def killed(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_any_number_of_processes_writes_the_same_bytes(project: Path, tmp_path: Path) -> None:
    write_params(cache=CACHE | {"shard_captions": 1})
    tiny.run_stage("prepare")
    found: list[dict[str, bytes]] = []
    for num in (1, 2):
        call = (project, ["encode_text"])
        if num == 1:
            stages_in_processes.run(*call)
        else:
            with contextlib.chdir(tiny.ROOT):  # where they import the project from
                in_processes(stages_in_processes.run, num, tmp_path / "meeting", *call)
        files = sorted(path for path in Path("out/encode_text").rglob("*") if path.is_file())
        found.append({path.name: path.read_bytes() for path in files})
        shutil.rmtree("out/encode_text")
        shutil.rmtree("work/encode_text")
    assert found[0] == found[1]
    assert {f"tokens-{number:05d}.arrow" for number in range(3)} < found[0].keys()


def test_embeddings_that_the_disk_has_no_room_for_are_refused(tmp_path: Path) -> None:
    assert "1,000 tokens x 24 bytes = 0.0 MB" in room_for_embeddings(1000, 12, "bfloat16", tmp_path)
    with pytest.raises(ValueError, match=r"no room for the embeddings: .*text\.cache: null"):
        room_for_embeddings(10**13, 4096, "float16", tmp_path)


def test_embeddings_are_made_by_all_gpus_and_words_by_one_process(project: Path) -> None:
    write_params()
    assert not launch.is_alone("encode_text")
    write_params(cache=None)
    assert launch.is_alone("encode_text")
    Path("params.yaml").write_text(json.dumps(text_project.text_params()))
    assert launch.is_alone("encode_text")
