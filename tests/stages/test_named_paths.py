"""Files and folders that `params.yaml` names and that are missing are said before anything runs."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import text_project
import tiny_encoders
import tiny_project as tiny

from stages import check, presets
from stages.named_paths import check_paths


ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    project = tiny.make_project(tmp_path / "project", text_project.text_params())
    monkeypatch.chdir(project)
    return project


def refused(params: dict[str, Any]) -> list[str]:
    Path("params.yaml").write_text(json.dumps(params))
    with pytest.raises(ValueError, match=r".") as caught:
        check_paths(check.check_all())
    return str(caught.value).replace(f"{Path.cwd()}/", "").splitlines()


def test_all_that_is_missing_is_named_at_once(project: Path) -> None:
    params = text_project.text_params()
    params["data"]["path"] = "gone/photos"
    params["text"] = tiny_encoders.section(Path("gone/t5"), tokenizer="gone/tokenizer")
    params["evaluate"]["clip_score"] = "gone/clip"
    assert refused(params) == [
        "data.path: gone/photos does not exist",
        "text.path: gone/t5 does not exist",
        "text.tokenizer: gone/tokenizer does not exist",
        "evaluate.clip_score: gone/clip does not exist",
    ]
    text_project.write_photos(project)
    (project / "t5").mkdir()
    params["data"]["path"] = "photos"
    params["text"] = tiny_encoders.section(Path("t5"))
    params["evaluate"]["clip_score"] = "t5"
    (message,) = refused(params)
    assert message.startswith("evaluate.clip_score: t5/config.json is missing, expected a folder")
    params["evaluate"]["clip_score"] = None
    (message,) = refused(params)
    assert message.startswith("text.path: t5 has no config.json")


def test_a_run_ends_at_its_first_stage_and_at_the_program_that_checks(
    project: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    text_project.write_photos(project)
    params = text_project.text_params()
    params["text"] = tiny_encoders.section(Path("gone"))
    Path("params.yaml").write_text(json.dumps(params))
    with pytest.raises(ValueError, match=r"^text\.path: \S+gone does not exist$"):
        tiny.run_stage("prepare")
    assert not Path("out").exists()
    params["text"] = text_project.text_params()["text"]
    params["evaluate"]["clip_score"] = "no-clip"
    Path("params.yaml").write_text(json.dumps(params))
    tiny.run_stage("prepare")  # samples need no scores
    assert re.search(r"params\.yaml: evaluate\.clip_score: \S+no-clip does not exist\n",
                     capsys.readouterr().err)  # fmt: skip
    monkeypatch.setattr("sys.argv", ["check"])
    with pytest.raises(SystemExit):
        check.main()
    assert capsys.readouterr().err.endswith("no-clip does not exist\n")


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("digits", []),
        (
            "text256-from-released-mar-l",
            ["data.path", "tokenizer.path", "text.path", "generator.path"],
        ),
        (
            "imagenet256-mar-b-released-adm",
            ["tokenizer.path", "generator.path", "reference.statistics"],
        ),
        ("tokenizers/imagenet256-sd", ["data.path", "tokenizer.path", "reference.statistics"]),
        ("folder32", ["data.path"]),
    ],
)
def test_paths_of_all_sections_are_looked_for(project: Path, name: str, keys: list[str]) -> None:
    Path("params.yaml").write_text(presets.resolve(name, ROOT / "presets"))
    try:
        check_paths(check.check_all())
        found: list[str] = []
    except ValueError as error:
        found = [line.partition(":")[0] for line in str(error).splitlines()]
    assert found == keys
