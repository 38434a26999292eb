"""The comparison of heads trains them on a finished project, scores and draws them."""

import json
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from benchmarks import quality


def test_heads_are_trained_scored_and_drawn(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(options: str) -> None:
        monkeypatch.setattr("sys.argv", ["quality", *options.split(), "--out", str(tmp_path)])
        quality.main()

    monkeypatch.chdir(finished)
    run("--train 1 --heads energy")
    run("--images 20 --batch 10 --set num_steps=2 temperature=0.9")
    rows = json.loads((tmp_path / "quality.json").read_text())
    assert [row["curve"] for row in rows] == list(quality.MODES["energy"])
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
