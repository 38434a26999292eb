"""`evaluate` scores photographs by their prompts with models in folders, and says what lacks."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import text_project
import tiny_project
import tiny_scorers as tiny
import torch

from mar.evaluation.pretrained import digest
from mar.evaluation.score_config import EvaluateConfig
from mar.sampling.store import SampleSet, shard_path, write_shard
from stages import check, evaluate, prompt_scores
from stages.stage import Stage
from stages.tracking import Run


CPU = torch.device("cpu")


def line(prompt: str, name: str) -> str:
    include = [{"class": name, "count": 1}]
    return json.dumps({"tag": "single_object", "include": include, "prompt": prompt})


def write(folder: Path, lines: list[str] | None) -> SampleSet:
    """Write four images of 24 px of two prompts."""
    rng = torch.Generator().manual_seed(0)
    write_shard(
        shard_path(folder, 0),
        torch.randint(256, (4, 3, 24, 24), generator=rng, dtype=torch.uint8),
        labels=torch.zeros(4, dtype=torch.long),
        first_index=0,
        num_classes=1,
        seed=0,
        prompts=["a dog", "a cat"] * 2,
        geneval=lines and lines * 2,
    )
    return SampleSet(folder)


def evaluate_config(**changes: Any) -> EvaluateConfig:
    params: dict[str, Any] = tiny_project.tiny_params()
    return EvaluateConfig.model_validate({**params["evaluate"], **changes})


def find(config: EvaluateConfig, samples: SampleSet, models: Path) -> dict[str, Any]:
    scorers = prompt_scores.open_scorers(config, samples, CPU, base=models)
    return prompt_scores.find(scorers, samples)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny.write_clip(folder / "clip")
    tiny.write_mask2former(folder / "detector", label=16)  # a dog, whatever it sees
    return folder


def test_images_are_scored_by_their_prompts(tmp_path: Path, models: Path) -> None:
    samples = write(tmp_path, [line("a dog", "dog"), line("a cat", "cat")])
    folders = {"detector": "detector", "clip": "clip"}
    config = evaluate_config(geneval=folders, clip_score="clip")
    found = find(config, samples, models)
    geneval, clip = found["geneval"], found["clip_score"]
    assert geneval["tasks"] == {"single_object": 0.5}  # the dogs
    assert geneval["overall"] == 0.5
    assert (geneval["detector"], geneval["clip"], geneval["num_judged"]) == ("detector", "clip", 4)
    assert 0 <= clip["value"] <= 100
    assert (clip["num_cut"], clip["model"]) == (0, "clip")
    shown = {table.title: dict(table.rows) for table in prompt_scores.tables(found)}
    assert geneval["tasks_std"] == {"single_object": 0.5}  # one of two prompts
    assert shown["GenEval"]["single object"] == "50.0% ± 50.0%"
    assert shown["GenEval"]["overall"] == "50.0% ± 50.0%"
    assert shown["CLIPScore"]["CLIPScore"] == f"{clip['value']:.2f} ± {clip['value_std']:.2f}"
    assert find(evaluate_config(), samples, models) == {}
    assert geneval["clip_sha256"] == clip["model_sha256"] == digest(models / "clip")
    assert geneval["detector_sha256"] == digest(models / "detector")


def test_a_digest_is_of_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    before = digest(tmp_path)
    (tmp_path / "README.md").write_text("not read by the model")
    assert digest(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(b"others")
    assert digest(tmp_path) != before


def test_a_wrong_folder_is_found_before_other_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    params: dict[str, Any] = tiny_project.tiny_params()
    params["evaluate"]["clip_score"] = "missing"
    Path("params.yaml").write_text(json.dumps(params))
    write(evaluate.SAMPLES, None)
    assert not evaluate.REFERENCE.exists()  # what real images are like is read later
    with pytest.raises(
        ValueError, match=r"evaluate\.clip_score: .*missing.config\.json is missing"
    ):
        evaluate.main(Stage("evaluate", Path("out/evaluate"), Path("work"), CPU, Run("evaluate")))


def test_lines_that_cannot_be_judged_are_found_before_a_training(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    params = text_project.text_params(prompts="PROMPTS.JSONL")
    params["evaluate"]["geneval"] = {name: str(models / name) for name in ("detector", "clip")}
    Path("params.yaml").write_text(json.dumps(params))
    Path("PROMPTS.JSONL").write_text(f"{line('a dog', 'dog')}\n")
    check.check_all()
    for key, other, complaint in (
        (
            "evaluate.geneval",
            line("a seven", "seven"),
            "'seven' of the prompt 'a seven' is none of the 80 classes",
        ),
        (
            "sample.prompts",
            line("a cat", "cat").replace("1}", '1, "color": 3}'),
            "color must be text, got 3",
        ),
    ):
        Path("PROMPTS.JSONL").write_text(f"{line('a dog', 'dog')}\n\n{other}\n")
        with pytest.raises(
            ValueError, match=rf"{re.escape(key)}: \S+PROMPTS\.JSONL, line 3: .*{complaint}"
        ):
            check.check_all()


def test_samples_without_such_prompts_are_refused(tmp_path: Path, models: Path) -> None:
    config = evaluate_config(geneval={"detector": "detector", "clip": "clip"})
    samples = write(tmp_path / "a", None)
    with pytest.raises(ValueError, match=r"evaluate\.geneval: the samples are not of GenEval's"):
        prompt_scores.open_scorers(config, samples, CPU, base=models)
    samples = write(tmp_path / "b", [line("a dog", "dog"), line("a seven", "seven")])
    with pytest.raises(ValueError, match=r"evaluate\.geneval: 'seven' of the prompt 'a seven' is"):
        prompt_scores.open_scorers(config, samples, CPU, base=models)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"clip_score": "clip"}, r"evaluate\.clip_score: must be null where section text is null"),
        (
            {"geneval": {"detector": "a", "clip": "b"}},
            r"evaluate\.geneval: must be null where sample\.prompts is no file of GenEval",
        ),
        ({"geneval": {"detector": "a"}}, r"evaluate\.geneval\.clip"),
    ],
)
def test_sections_that_do_not_fit_are_refused(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    params: dict[str, Any] = tiny_project.tiny_params()
    params["evaluate"] |= changes
    (tmp_path / "params.yaml").write_text(json.dumps(params))
    with pytest.raises(ValueError, match=complaint):
        check.check_all(tmp_path / "params.yaml")
