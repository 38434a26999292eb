"""A sweep walks its axes from the best point so far, goes on where it stopped, and proposes."""

import csv
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from ruamel.yaml import YAML

from pipelines import clone, experiment, report_run, sweep, sweep_axes, sweep_report
from pipelines.sweep_report import Point
from stages import check
from stages.log_report import ReportRun


ROOT = Path(__file__).parents[2]
BASE = YAML(typ="safe").load((ROOT / "params.yaml").read_text())


@dataclass
class Place:
    """A clone whose experiments are known without running anything."""

    texts: dict[str, str] = field(default_factory=dict[str, str])
    ran: list[str] = field(default_factory=list[str])
    logged: list[ReportRun] = field(default_factory=list[ReportRun])
    broken: str = "none"
    project: Path = ROOT

    def run(self, place: "Place", name: str, text: str, pipeline: str) -> tuple[str, Any]:
        if self.broken in name:
            raise RuntimeError(f"experiment {name!r} failed\nsample: it broke")
        if self.texts.get(name) != text:
            self.ran.append(name)
        self.texts[name] = text
        return name, {"sample": {"images_per_second": 50.0}}

    def log(self, project: Path, report: str) -> None:
        self.logged.append(ReportRun.model_validate_json(report))

    def metrics(self, reference: str, stage: str) -> dict[str, Any]:
        """Best at guidance 1.5 and temperature 1.2, and with a rebuilt average of width 0.1."""
        sample = YAML(typ="safe").load(self.texts[reference])["sample"]
        distance = abs(sample["guidance_scale"] - 1.5) + abs(sample["head"]["temperature"] - 1.2)
        distance += 0.0 if sample["weights"] == {"width": 0.1} else 0.1
        scores = {
            "classifier_fid_40": distance,
            "classifier_fid_40_std": 0.02,
            "classifier_is": 8.5,
            "classifier_is_std": 0.06,
        }
        return {"samples": scores}


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Place:
    found = Place()

    @contextmanager
    def opened(project: Path) -> Iterator[Place]:
        yield found

    monkeypatch.setattr(clone, "opened", opened)
    monkeypatch.setattr(experiment, "run", found.run)
    monkeypatch.setattr(report_run, "send", found.log)
    return found


def run(folder: Path, **changes: Any) -> list[Point]:
    arguments: dict[str, Any] = {
        "guidance": [1.0, 1.5],
        "temperature": [1.2],
        "diffusion_steps": [],
        "steps": [],
        "weights": ["raw", "0.1"],
        "num_images": 40,
        "folder": folder,
        "project": ROOT,
    }
    points: Any = sweep.sweep(**{**arguments, **changes})
    return points


def test_axes_are_walked_one_after_the_other_and_the_best_is_proposed(
    place: Place, tmp_path: Path, server: None
) -> None:
    points = run(tmp_path)
    tried = [
        (p.settings["guidance"], p.settings["temperature"], p.settings["weights"]) for p in points
    ]
    assert tried == [
        (1.15, 1.1, "ema"),
        (1.0, 1.1, "ema"),
        (1.5, 1.1, "ema"),
        (1.5, 1.2, "ema"),
        (1.5, 1.2, "raw"),
        (1.5, 1.2, {"width": 0.1}),
    ]
    for text in place.texts.values():
        sample = YAML(typ="safe").load(text)["sample"]
        assert (sample["num_images"], sample["seed"]) == (40, 1000)
    expected = (
        "dvc exp run -S sample.guidance_scale=1.5 -S sample.head.temperature=1.2 "
        "-S 'sample.weights={width: 0.1}'"
    )
    report = (tmp_path / "sweep-sampling.md").read_text()
    assert expected in report
    numbers = "0.000 +- 0.02 | 8.50 +- 0.06 | 20.0".replace("+-", "\N{PLUS-MINUS SIGN}")
    assert f"| 1.5 | 1.2 | width 0.1 | {numbers} | weights |" in report
    assert "0 other points are within two standard deviations of the best" in report
    with (tmp_path / "sweep-sampling.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["classifier_fid_40"]) for row in rows] == [p.distance for p in points]
    with Image.open(tmp_path / "sweep-sampling.png") as picture:
        assert picture.height > 500

    ended = place.logged[-1]
    assert [it.status for it in place.logged] == ["RUNNING", "RUNNING", "RUNNING", "FINISHED"]
    assert [it.step for it in place.logged] == [3, 4, 6, 6]
    assert len({it.key for it in place.logged}) == 1
    assert ended.name == "sweep sampling"
    assert ended.numbers == {"classifier_fid_40": 0.0}
    assert [path.suffix for path in ended.files] == [".csv", ".md", ".png"]
    assert ended.picture == ended.files[-1]
    assert expected in ended.note
    assert "![" not in ended.note
    assert ended.params["sample.guidance_scale"] == "1.0, 1.5"

    # A killed sweep begins again, and what is there is taken.
    del place.texts["sweep-sampling-g1.5-t1.2-wema"], place.ran[:]
    assert [p.settings for p in run(tmp_path)] == [p.settings for p in points]
    assert place.ran == ["sweep-sampling-g1.5-t1.2-wema"]
    assert {it.key for it in place.logged} == {ended.key}


def test_a_point_that_fails_stops_no_other(place: Place, tmp_path: Path, server: None) -> None:
    place.broken = "g1.5"
    with pytest.raises(RuntimeError, match=r"1 failed:\nsweep-sampling-g1.5.*: sample: it broke"):
        run(tmp_path, temperature=[], weights=[])
    assert "Failed:" in (tmp_path / "sweep-sampling.md").read_text()
    assert len(place.ran) == 2
    assert place.logged[-1].status == "FAILED"


def test_the_seed_of_the_long_run_and_keys_that_are_not_there_are_refused(
    place: Place, tmp_path: Path, server: None
) -> None:
    with pytest.raises(ValueError, match=r"seed: must differ from sample.seed, .*, got 0"):
        run(tmp_path, seed=0)
    for text in ("best", "0.4", "1", "-0.1", "nan"):
        with pytest.raises(
            ValueError, match=f"weights: must be ema, raw, kept, a relative .* got '{text}'"
        ):
            run(tmp_path, weights=[text])
    with pytest.raises(ValueError, match="name: must be lower-case"):
        run(tmp_path, name="A b")
    assert place.ran == []


def test_averages_are_tried_where_the_training_kept_some(
    place: Place, tmp_path: Path, server: None
) -> None:
    nothing: dict[str, Any] = {"guidance": [], "temperature": []}
    points = run(tmp_path / "kept", **nothing, weights=["raw", "ema", "kept"])
    widths = [{"width": 0.05}, {"width": 0.1}, {"width": 0.15}]
    assert [point.settings["weights"] for point in points] == ["ema", "raw", *widths]
    points = run(tmp_path / "decays", **nothing, weights=["0.999"])
    assert points[-1].settings["weights"] == {"decay": 0.999}
    assert "-S 'sample.weights={decay: 0.999}'" in sweep_axes.proposal(BASE, points[-1].settings)

    text = (ROOT / "params.yaml").read_text()
    changed = re.sub(r"averages: \{.*\}", "averages: null", text)
    assert changed != text
    (tmp_path / "params.yaml").write_text(changed)
    points = run(tmp_path / "none", **nothing, weights=["raw", "ema", "kept"], project=tmp_path)
    assert [point.settings["weights"] for point in points] == ["ema", "raw"]
    with pytest.raises(ValueError, match=r"as training\.averages is null, got '0\.1'"):
        run(tmp_path, **nothing, weights=["ema", "0.1"], project=tmp_path)


@pytest.mark.parametrize("weights", [{"width": 0.1}, {"decay": 0.99}])
def test_points_are_valid_settings(weights: dict[str, float], tmp_path: Path) -> None:
    settings = {
        "guidance": 2.0,
        "temperature": 0.9,
        "diffusion_steps": 25,
        "steps": 8,
        "weights": weights,
    }
    text = sweep_axes.variant(ROOT, settings, num_images=300, seed=7)
    (tmp_path / "params.yaml").write_text(text)
    found = check.check_all(tmp_path / "params.yaml")["sample"]
    assert (found.guidance_scale, found.head.temperature, found.head.num_steps) == (2.0, 0.9, 25)
    assert (found.num_steps, found.weights.model_dump(), found.seed) == (8, weights, 7)


def test_nothing_is_proposed_where_params_has_the_best() -> None:
    settings = {"guidance": BASE["sample"]["guidance_scale"], "weights": "ema"}
    point = Point(settings, "x", "fid", 1.0, None, None, None, "", None)
    assert sweep_axes.proposal(BASE, settings).endswith("best settings that were tried: dvc repro")
    assert sweep_report.table([point]).splitlines()[1].startswith("1.15,ema,1.0,")
