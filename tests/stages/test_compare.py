"""Runs are compared in a terminal: what was changed and what came of it, in 100 columns."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_project as tiny
from ruamel.yaml import YAML

from stages import changes, compare
from stages.compare import WORKSPACE, Row


COMMITTED = {"sample.guidance_scale": "1.15", "training.lr": "0.002", "sample.labels": "None"}
SCORES = {
    "classifier_fid": 0.19593,
    "classifier_is": 8.61,
    "classifier_kid": 0.01,
    "classifier_precision": 0.878,
    "classifier_recall": 0.8831,
    "classifier_accuracy": 0.976,
    "psnr": 30.12,
    "seconds_sample": 43.0,
}


def row(name: str, scores: dict[str, float] = SCORES, **changed: object) -> Row:
    values = {key.replace("_in_", "."): str(value) for key, value in changed.items()}
    return Row(name, {**COMMITTED, **values}, scores)


def test_a_table_shows_changed_keys_and_scores() -> None:
    better = {**SCORES, "classifier_fid": 0.1}
    rows = [row("bonny-frog"), row("guidance-2", better, sample_in_guidance_scale=2)]
    head, first, second, *_ = compare.table(rows, COMMITTED).splitlines()
    assert head.split() == [
        "experiment", "changed", "keys", "FID*", "IS*", "prec.*", "recall*", "accuracy", "PSNR",
    ]  # fmt: skip
    assert first.split() == [
        "bonny-frog", "-", "0.1959", "8.610", "0.8780", "0.8831", "0.9760", "30.12",
    ]  # fmt: skip
    assert second.split()[:3] == ["guidance-2", "sample.guidance_scale=2", "0.1000"]


def test_a_table_fits_in_a_hundred_columns_whatever_is_in_it() -> None:
    everything = dict.fromkeys(compare.COLUMNS, 123.456)
    long = row("x" * 60, everything, sample_in_labels=list(range(50)), training_in_lr="1" * 90)
    text = compare.table([long, row(WORKSPACE, {})], COMMITTED)
    assert max(map(len, text.splitlines())) <= 100
    assert "sample.labels=[0, 1," in compare.table([long], COMMITTED).replace("\n", "")


def test_inceptions_scores_and_the_classifiers_are_told_apart() -> None:
    text = compare.table([row("a", {"fid": 2.31}), row("b", {"classifier_fid": 0.2})], COMMITTED)
    assert text.splitlines()[0].split()[-2:] == ["FID", "FID*"]
    assert compare.FOOTNOTE in text


def test_distances_of_few_images_have_columns_of_their_own() -> None:
    rows = [row("a", {"classifier_fid_500": 3.0, "classifier_fid_500_std": 0.1}), row("b")]
    head, few, many, *rest = compare.table(rows, COMMITTED).splitlines()
    assert head.split()[3:5] == ["FID*", "FID*/500"]
    assert few.split()[2:4] == ["-", "3.000"]
    assert many.split()[2:4] == ["0.1959", "-"]
    assert compare.COUNT_NOTE in rest


def test_what_is_not_committed_yet_is_compared_with_nothing() -> None:
    assert "guidance" not in compare.table([row("a", sample_in_guidance_scale=2)], None)


def test_one_result_is_one_line() -> None:
    rows = [
        row(WORKSPACE, sample_in_guidance_scale=2),
        row("guidance-2", sample_in_guidance_scale=2),  # what lies in the workspace
        row("guidance-3", sample_in_guidance_scale=3),
        row("2026-11-25 05:47:02", sample_in_guidance_scale=3),  # MLflow's run of the same
        row("2026-11-25 05:40:00"),
        row("stopped before it had scores", {"seconds_sample": 3.0}),
    ]
    assert [found.name for found in compare.distinct(rows)] == [
        WORKSPACE, "guidance-3", "2026-11-25 05:40:00",
    ]  # fmt: skip


def test_experiments_are_read_as_dvc_tells_them() -> None:
    data = {
        "params": {"params.yaml": {"data": {"sample": {"guidance_scale": 2, "labels": None}}}},
        "metrics": {"out/evaluate/metrics.json": {"data": {"samples": {"fid": 2.5}, "num": 4}}},
    }
    shown = [
        {"rev": "workspace", "name": None, "experiments": None},
        {
            "rev": "479cd0f",
            "experiments": [
                {"name": "bonny-frog", "revs": [{"rev": "1234567890", "data": data}]},
                {"name": None, "revs": [{"rev": "abcdef0123", "data": {}, "error": "failed"}]},
                {"name": None, "revs": [{"rev": "abcdef0123", "data": {**data, "metrics": {}}}]},
            ],
        },
    ]
    found, without_name = compare.read_experiments(shown)
    assert found.name == "bonny-frog"
    assert found.values == {"sample.guidance_scale": "2", "sample.labels": "None"}
    assert found.numbers == {"fid": 2.5}
    assert without_name.name == "abcdef0"


def test_without_experiments_it_says_how_to_make_one(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert compare.main([]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0].startswith("experiment")
    assert "no experiments yet; one is made by: dvc exp run -S sample.guidance_scale=2" in said
    assert "workspace: out/ is not of these parameters and this code; run: dvc repro" in said
    assert not Path("mlflow.db").exists()


def test_scores_of_the_workspace_are_those_of_its_parameters(project: Path) -> None:
    out = project / "out/evaluate"
    out.mkdir(parents=True)
    (out / "metrics.json").write_text('{"samples": {"classifier_fid": 0.5}}')
    params = tiny.tiny_params()
    sections = {name: params[name] for name in ("sample", "reference", "evaluate")}
    values = {"data.source": params["data"]["source"], **sections}
    entry = {"params": {"params.yaml": values}, "deps": [], "outs": []}
    (project / "dvc.lock").write_text(json.dumps({"stages": {"evaluate": entry}}))
    assert compare.workspace().numbers == {"classifier_fid": 0.5}
    params["evaluate"]["neighbours"] = 5
    (project / "params.yaml").write_text(json.dumps(params))
    assert compare.workspace().numbers == {}


def test_an_mlflow_that_cannot_be_asked_is_said(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert compare.main([]) == 0
    assert "without MLflow's runs: no answer from http://127.0.0.1:9" in capsys.readouterr().err


def test_it_is_a_program_with_help_and_no_other_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-m", "stages.compare"]
    found = subprocess.run([*command, "--help"], cwd=tiny.ROOT, capture_output=True, text=True)
    assert found.returncode == 0
    assert "usage: python -m stages.compare" in found.stdout
    with pytest.raises(SystemExit):
        compare.main(["--mots", "3"])
    monkeypatch.chdir(tmp_path)
    assert compare.main([]) == 1


def test_a_misspelt_key_that_was_added_gets_a_suggestion(project: Path) -> None:
    from stages import check

    params = tiny.tiny_params()
    params["sample"]["guidance_scal"] = 2  # by: dvc exp run -S +sample.guidance_scal=2
    params["generator"]["head"] = {**dict(params["generator"]["head"]), "siz": 3}  # type: ignore[call-overload]
    with (project / "params.yaml").open("w") as file:
        YAML().dump(json.loads(json.dumps(params)), file)
    with pytest.raises(ValueError, match="is not a known key") as caught:
        check.check_all()
    assert "sample.guidance_scal is not a known key; did you mean 'guidance_scale'?" in str(
        caught.value
    )
    assert "generator.head.siz is not a known key; did you mean 'size'?" in str(caught.value)
    assert changes.current()["sample.guidance_scal"] == 2
