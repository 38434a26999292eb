"""An ablation runs rows as experiments, loses none to another, and says what holds."""

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from PIL import Image

from pipelines import claims, clone, measurement, report
from pipelines.ablation import ROWS, ablate, choose, variant
from pipelines.measurement import Measurement, Over
from stages import check


ROOT = Path(__file__).parents[2]
PRESETS = ROOT / "presets"

# PAPER: Table 1, FID without and with guidance.
TABLE_1 = {
    "table1-raster-causal-cross-entropy": (19.58, 4.92),
    "table1-raster-causal-diffusion": (19.23, 4.69),
    "table1-random-causal-cross-entropy": (16.22, 4.36),
    "table1-random-causal-diffusion": (13.07, 4.07),
    "table1-random-bidirectional-cross-entropy": (8.75, 3.50),
    "table1-random-bidirectional-diffusion": (3.43, 1.84),
    "table1-mar-cross-entropy": (8.79, 3.69),
    "table1-mar-diffusion": (3.50, 1.98),
}


# The rows


@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_valid_with_every_seed_and_guidance(row: str, tmp_path: Path) -> None:
    for guided, scale in ((False, 1.0), (True, 2.0)):
        text, _ = variant(row, PRESETS, seed=3, guided=guided)
        (tmp_path / "params.yaml").write_text(text)
        configs = check.check_all(tmp_path / "params.yaml")
        assert configs["training"].seed == configs["sample"].seed == 3
        assert configs["sample"].guidance_scale == scale


def test_rows_share_their_budget_and_tokenizers() -> None:
    params = [variant(row, PRESETS, seed=0, guided=True)[1] for row in ROWS]
    for section in ("data", "tokenizer_training", "latents", "training", "reference", "evaluate"):
        assert all(other[section] == params[0][section] for other in params)
    assert all(other["generator"]["size"] == params[0]["generator"]["size"] for other in params)
    assert {other["sample"]["num_images"] for other in params} == {500}
    tokenizers = {json.dumps(other["tokenizer"]) for other in params}
    assert len(tokenizers) == 2


def test_rows_are_those_of_the_paper_in_its_order() -> None:
    assert [row.removeprefix("toy/") for row in ROWS[:8]] == list(TABLE_1)
    for row in ROWS[:8]:
        toy = variant(row, PRESETS, seed=0, guided=True)[1]
        paper = variant(row.replace("toy/", "paper/"), PRESETS, seed=0, guided=True)[1]
        for key in ("attention", "order"):
            assert toy["generator"][key] == paper["generator"][key]
        assert toy["generator"]["head"]["kind"] == paper["generator"]["head"]["kind"]
        assert toy["tokenizer"]["kind"] == paper["tokenizer"]["kind"]
        tokens = (16, 256)  # of an image
        assert tokens[0] / toy["sample"]["num_steps"] == tokens[1] / paper["sample"]["num_steps"]


def test_patterns_choose_rows_and_a_typo_gets_a_suggestion() -> None:
    assert choose(["toy/table1-mar-*", "toy/l2", "toy/l*"], PRESETS) == [
        "toy/table1-mar-cross-entropy",
        "toy/table1-mar-diffusion",
        "toy/l2",
    ]
    with pytest.raises(ValueError, match=r"'toy/flwo' is no preset .*; did you mean 'toy/flow'\?"):
        choose(["toy/l2", "toy/flwo"], PRESETS)


@pytest.mark.parametrize("row", TABLE_1)
def test_published_numbers_are_read_from_the_papers_presets(row: str) -> None:
    assert measurement.published(f"toy/{row}", PRESETS) == TABLE_1[row]
    assert measurement.published("toy/l2", PRESETS) is None


# What holds


def measured(row: str, fid: float, *, seed: int = 0, guided: bool = False) -> Measurement:
    return Measurement(
        row=row,
        seed=seed,
        guided=guided,
        experiment=f"{row.replace('/', '-')}-seed{seed}",
        distance="classifier_fid",
        fid=fid,
        real_fid=0.09,
        classifier_accuracy=0.9,
        real_classifier_accuracy=0.99,
        parameters=700_000,
        training_seconds=60.0,
        sampling_ms=20.0,
        psnr=30.0,
    )


def as_published(l2: float = 100.0) -> list[Measurement]:
    return [
        *(
            measured(f"toy/{row}", fid[guided] + 0.001 * seed, seed=seed, guided=guided)
            for row, fid in TABLE_1.items()
            for guided in (False, True)
            for seed in range(3)
        ),
        measured("toy/l2", l2),
    ]


def verdicts(measurements: list[Measurement]) -> dict[str, str]:
    rows = measurement.rows(measurements, PRESETS)
    return {verdict.claim.text: verdict.text for verdict in claims.check(rows)}


def test_the_papers_own_numbers_bear_out_its_claims() -> None:
    found = verdicts(as_published())
    assert found.pop("diffusion beats cross-entropy on the same tokenizer") == "not measured"
    assert set(found.values()) == {"holds"}
    assert len(found) == 4


def test_a_claim_that_fails_is_said_to() -> None:
    assert verdicts(as_published(l2=1.0))["L2 fails: it is worse than every row of Table 1"] == (
        "does not hold"
    )
    turned = [replace(m, fid=-m.fid) for m in as_published()]
    assert verdicts(turned)["bidirectional beats causal"] == "does not hold"


def test_overlapping_seeds_decide_nothing() -> None:
    assert Over((1.0, 2.0)).beats(Over((2.5, 3.0))) is True
    assert Over((2.5, 3.0)).beats(Over((1.0, 2.0))) is False
    assert Over((1.0, 2.0)).beats(Over((1.5, 3.0))) is None
    near = [
        replace(m, fid=20.0) if "raster" in m.row and m.seed == 0 else m for m in as_published()
    ]
    wide = [replace(m, fid=1.0) if "raster" in m.row and m.seed == 1 else m for m in near]
    assert verdicts(wide)["random beats raster"] == "undecided"
    one = [m for m in wide if m.guided or "diffusion" in m.row]
    one = [m for m in one if not ("diffusion" in m.row and m.seed == 1)]
    assert verdicts(one)["random beats raster"] == "mixed: holds 2, undecided 1"


def test_the_report_holds_numbers_picture_and_failures(tmp_path: Path) -> None:
    rows = measurement.rows(as_published(), PRESETS)
    text = report.write(tmp_path, "table1", rows, ["toy/flow, seed 0: it broke"])
    assert (tmp_path / "ablation-table1.md").read_text() == text
    assert (
        "| table1-mar-diffusion | 3.50 \u00b1 0.00 | 1.98 \u00b1 0.00 | 90.0 \u00b1 0.0 % |" in text
    )
    assert "| l2 | 100.00 |  | 90.0 % |  |  | 30.0 | 700,000 | 60 | 20.0 |" in text
    assert "Seeds 0, 1, 2" in text
    assert "| **bidirectional beats causal** | | **holds** | | | |" in text
    assert (
        "| table1-mar-diffusion | table1-mar-cross-entropy | 3.50 : 8.79 holds | 1.98 : 3.69 holds "
        "| 3.50 : 8.79 | 1.98 : 3.69 |"
    ) in text
    assert "| table1-mar-diffusion | l2 | 3.50 : 100.00 holds |  |  |  |" in text
    assert "Rank correlation with the paper's FIDs: 1.00 without guidance, 1.00 with" in text
    assert text.endswith("Failed:\n\n- toy/flow, seed 0: it broke\n")
    assert "(ablation-table1.png)" in text
    with Image.open(tmp_path / "ablation-table1.png") as picture:
        assert picture.width > 800
    with (tmp_path / "ablation-table1.csv").open() as file:
        values = [float(line["fid"]) for line in csv.DictReader(file)]
    assert sorted(values) == sorted(m.fid for m in as_published())
    summary = json.loads((tmp_path / "ablation-table1.json").read_text())
    assert summary["rows"]["table1-mar-diffusion"]["fid_guided"]["mean"] == pytest.approx(1.981)
    assert summary["claims"]["random beats raster"]["verdict"] == "holds"


# The flow

# One script for all stages: it notes that it ran, and measures what params.yaml says.
STAGE = """
import json, os, sys
from pathlib import Path
from ruamel.yaml import YAML
stage, params = sys.argv[1], YAML(typ="safe").load(Path("params.yaml"))
if params["generator"]["fid"] < 0 and stage != "reconstruct":
    sys.exit(f"{stage}: generator.fid must be positive")
with open(os.environ["MAR_ROOT"] + "/ran.log", "a") as file:
    if stage != "reconstruct":
        file.write(f"{stage} {os.environ['DVC_EXP_NAME']} {os.environ['MAR_PIPELINE']}\\n")
fid = params["generator"]["fid"] + params["training"]["seed"]
scores = {"classifier_fid": fid / params["sample"]["guidance_scale"], "classifier_accuracy": 0.5}
metrics = {"steps": 10, "psnr": 30.0, "parameters": 7, "samples": scores,
           "held_out": {"classifier_fid": 0.1, "classifier_accuracy": 1.0}}
speeds = Path(os.environ["MAR_ROOT"], "work", "speeds", stage + ".json")
speeds.parent.mkdir(parents=True, exist_ok=True)
speeds.write_text(json.dumps({"images_per_second": 4.0 * fid}))
out = Path("out", stage)
out.mkdir(parents=True, exist_ok=True)
(out / "result").write_text(stage + str(fid))
(out / "metrics.json").write_text(json.dumps(metrics))
"""
PARAMS = {
    "generator": {"fid": 5.0},
    "training": {"seed": 0, "batch_size": 8},
    "sample": {"seed": 0, "guidance_scale": 2.0},
}


def stage(name: str, upstream: list[str], params: list[str]) -> dict[str, Any]:
    return {
        "cmd": f"python stage.py {name}",
        "deps": ["stage.py", *(f"out/{other}/result" for other in upstream)],
        "params": params,
        "outs": [f"out/{name}/result"],
        "metrics": [{f"out/{name}/metrics.json": {"cache": False}}],
    }


@pytest.fixture
def project(empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of three stages and three presets, one of which fails."""
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "test")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "test@example.com")
    folder = Path(shutil.copytree(empty, tmp_path / "project"))
    stages = {
        "reconstruct": stage("reconstruct", [], ["generator", "training"]),
        "train_generator": stage("train_generator", [], ["generator", "training"]),
        "sample": stage("sample", ["train_generator"], ["sample"]),
        "evaluate": stage("evaluate", ["sample"], ["generator", "training", "sample"]),
    }
    (folder / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    (folder / "stage.py").write_text("raise SystemExit('the committed one')\n")
    (folder / "presets").mkdir()
    for name, fid in {"good": 5.0, "broken": -1.0, "better": 2.0}.items():
        content = {**PARAMS, "generator": {"fid": fid}}
        (folder / "presets" / f"{name}.yaml").write_text(f"# {name}\n\n{json.dumps(content)}\n")
    (folder / "params.yaml").write_text(json.dumps(PARAMS))
    (folder / ".gitignore").write_text("/work/\n/out/ablation/\n/ran.log\n")
    (folder / ".dvcignore").write_text("/work/\n")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "Begin")
    (folder / "stage.py").write_text(STAGE)  # an edit, not committed
    (folder / "params.yaml").write_text("# mine\n" + json.dumps(PARAMS))
    (folder / "notes.txt").write_text("not in git\n")
    return folder


def git(folder: Path, *arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def state(project: Path) -> dict[str, str]:
    """Return the content of what is in the project and not ignored, and what git says of it."""
    names = git(project, "ls-files", "--cached", "--others", "--exclude-standard").split()
    return {name: (project / name).read_text() for name in names} | {
        "": git(project, "status", "--porcelain") + git(project, "stash", "list")
    }


def ran(project: Path) -> list[list[str]]:
    return [line.split() for line in (project / "ran.log").read_text().splitlines()]


@pytest.mark.slow
def test_rows_become_experiments_and_a_failing_one_loses_no_other(
    project: Path, server: None
) -> None:
    before = state(project)
    with pytest.raises(RuntimeError, match=r"1 failed:\nbroken, seed 1: .*fid must be positive"):
        ablate(["good", "broken", "better"], [1], "trial", project=project)
    assert state(project) == before

    text = (project / "out/ablation/ablation-trial.md").read_text()
    assert "| good | 6.00 | 3.00 | 50.0 % | 50.0 % |  | 30.0 | 7 | 3 | 41.7 |" in text
    assert "| better | 3.00 | 1.50 |" in text
    assert "- broken, seed 1: train_generator: generator.fid must be positive" in text

    # The training of a row is shared; each row has one key for MLflow.
    unguided, guided = ["train_generator", "sample", "evaluate"], ["sample", "evaluate"]
    assert [line[:2] for line in ran(project)] == [
        [stage, name]
        for row in ("good-seed1", "better-seed1")
        for name, stages in ((row, unguided), (f"{row}-guided", guided))
        for stage in stages
    ]
    assert len({line[2] for line in ran(project)}) == 2

    references = git(project, "for-each-ref", "--format=%(refname:lstrip=4)", "refs/exps").split()
    assert references == ["better-seed1", "better-seed1-guided", "good-seed1", "good-seed1-guided"]
    dvc = [sys.executable, "-m", "dvc", "exp", "list", "--name-only"]
    listed = subprocess.run(dvc, cwd=project, capture_output=True, text=True, check=True).stdout
    assert set(listed.split()) == set(references)

    # Again: what is there is not run, and what failed is tried again.
    content = {**PARAMS, "generator": {"fid": 4.0}}
    (project / "presets" / "broken.yaml").write_text(f"# mended\n\n{json.dumps(content)}\n")
    done = len(ran(project))
    results = ablate(["good", "broken"], [1], "trial", project=project)
    assert {line[1] for line in ran(project)[done:]} == {"broken-seed1", "broken-seed1-guided"}
    assert [(m.row, m.guided, m.fid) for m in results] == [
        ("good", False, 6.0),
        ("good", True, 3.0),
        ("broken", False, 5.0),
        ("broken", True, 2.5),
    ]


def test_an_experiment_of_other_code_is_not_taken(project: Path) -> None:
    with clone.opened(project) as place:
        text, _ = variant("good", project / "presets", seed=1, guided=False)
        place.write_params(text)
        environment = {**os.environ, "MAR_ROOT": str(project), "MAR_PIPELINE": "key"}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        command = [sys.executable, "-m", "dvc", "exp", "run", "--quiet", "--name", "one"]
        subprocess.run(command, cwd=place.folder, env=environment, check=True)
        assert place.find("one") is not None
        assert place.find("other") is None
        assert (
            place.metrics(place.find("one") or "", "evaluate")["samples"]["classifier_accuracy"]
            == 0.5
        )
        place.write_params(text.replace("batch_size: 8", "batch_size: 9"))
        assert place.find("one") is None
    (project / "stage.py").write_text(STAGE + "# edited\n")
    (project / "notes.txt").unlink()
    with clone.opened(project) as place:
        place.write_params(text)
        assert place.find("one") is None
        assert not (place.folder / "notes.txt").exists()
        assert (place.folder / "stage.py").read_text().endswith("# edited\n")
        place.discard("one")
        (place.folder / "stage.py").write_text(STAGE)
        assert place.find("one") is None


def test_two_ablations_at_once_are_refused(project: Path) -> None:
    (project / "work").mkdir()
    with (
        FileLock(project / "work" / "ablation.lock"),
        pytest.raises(ValueError, match="an ablation or a sweep is already running"),
        clone.opened(project),
    ):
        pass


def test_a_project_without_a_commit_is_refused(empty: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(empty, tmp_path / "project"))
    with pytest.raises(ValueError, match="HEAD"), clone.opened(folder):
        pass
