"""The comparison of heads trains them on a finished project, scores and draws them."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from benchmarks import quality
from mar.model.mar import MAR


def test_heads_are_trained_scored_and_drawn(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(options: str) -> None:
        monkeypatch.setattr("sys.argv", ["quality", *shlex.split(options), "--out", str(tmp_path)])
        quality.main()

    monkeypatch.chdir(finished)
    run("--train 1 --heads energy")
    with pytest.raises(ValueError, match="--steps: no model here has a row of that kind"):
        run("--images 20 --batch 10 --steps 7")
    chosen = "--curves 'one evaluation' --steps 1"
    run(f"--images 20 --batch 10 --set num_steps=2 temperature=0.9 {chosen}")
    (first,) = json.loads((tmp_path / "quality.json").read_text())
    run("--images 20 --batch 10 --set num_steps=2 temperature=0.9")
    rows = json.loads((tmp_path / "quality.json").read_text())
    assert [row["curve"] for row in rows] == list(quality.MODES["energy"])
    assert rows[0] == first
    assert {row["evaluations"] for row in rows} == {2}  # one in each generation step
    assert [row["sample"]["guidance_scale"] for row in rows] == [1.15, 2.0]
    assert {row["sample"]["head"]["temperature"] for row in rows} == {0.9}
    assert all(row["classifier_fid_20"] >= 0 and row["seconds"] > 0 for row in rows)
    assert len(pd.read_csv(tmp_path / "quality.csv")) == 2
    with Image.open(tmp_path / "quality.png") as plot:
        assert plot.width > 3 * 400  # three panels
    assert len(list((tmp_path / "pictures").iterdir())) == 2

    run("--images 20 --batch 10 --set num_steps=2 temperature=0.9")
    assert json.loads((tmp_path / "quality.json").read_text()) == rows  # nothing again


def test_a_table_is_drawn_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ("model", "curve", "steps", "seconds", "evaluations", "classifier_fid")
    rows = [("flow", "Euler", 2, 0.2, 32, 7.0), ("flow", "Euler", 1, 0.1, 16, 9.0)]
    pd.DataFrame(rows, columns=keys).to_csv(tmp_path / "rows.csv", index=False)
    monkeypatch.setattr("sys.argv", ["quality", "--draw", str(tmp_path / "rows.csv")])
    quality.main()
    with Image.open(tmp_path / "rows.png") as plot:
        assert 2 * 400 < plot.width < 3 * 400  # two panels: the table has no share recognised
    joined = quality.points_of(pd.read_csv(tmp_path / "rows.csv"), "flow", "Euler")
    assert joined["classifier_fid"].tolist() == [9.0, 7.0]  # by steps, not as the rows lie


def test_curves_that_do_not_fit_a_model_are_left_out(
    finished: Path, variant: Callable[..., MAR], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished)
    found = dict(quality.ways("diffusion", {"num_steps": 4}))
    causal = variant(attention="causal", mask_ratio=None)
    reason = quality.misfit(causal, "8 in halves", found["8 in halves"])
    assert reason is not None
    assert reason.startswith("sample.")
    assert quality.misfit(causal, "DDIM", found["DDIM"]) is None
    assert quality.misfit(variant(), "8 in halves", found["8 in halves"]) is None


def test_halves_have_the_generation_steps_of_their_curve(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished)
    found = dict(quality.ways("flow", {"num_steps": 4}))
    assert (found["8 in halves"].num_steps, found["8 in halves"].reconstruction_steps) == (8, 2)
    assert (found["Adams"].num_steps, found["Adams"].reconstruction_steps) == (4, None)
