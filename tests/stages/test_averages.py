"""Images are generated with the weights that are asked for, of those that a training kept."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_project import run_stage, tiny_params

from mar.averaging.choice import OfDecay, OfWidth, WeightsChoice
from mar.averaging.snapshots import Snapshot, read_index
from mar.files import seal
from mar.model.mar import MAR
from mar.sampling.store import SampleSet
from stages import check, chosen_weights, generate


STEPS = 6  # of a tiny training


@pytest.fixture
def trained(project: Path, finished: Path) -> Path:
    shutil.copytree(finished / "out", project / "out")
    return project


def load(project: Path, choice: WeightsChoice) -> MAR:
    tokenizer = seal.digest(project / "out/train_tokenizer/tokenizer.safetensors")
    said: list[str] = []
    return chosen_weights.load(project / "out/train_generator", choice, tokenizer, said.append)


def change(project: Path, **changes: dict[str, Any]) -> None:
    content = tiny_params()
    for section, values in changes.items():
        content[section] |= values
    (project / "params.yaml").write_text(json.dumps(content))


def test_the_averages_of_all_planned_steps_are_kept(finished: Path) -> None:
    folder = finished / "out/train_generator/averages"
    expected = [Snapshot(w, step) for w in (0.05, 0.1) for step in range(1, STEPS + 1)]
    assert read_index(folder) == expected
    for snapshot in expected:
        assert snapshot.read(folder)


def test_rebuilt_weights_are_those_of_the_training(finished: Path) -> None:
    ema, raw = (dict(load(finished, name).named_parameters()) for name in ("ema", "raw"))
    last = Snapshot(0.1, STEPS).read(finished / "out/train_generator/averages")
    kept = dict(load(finished, OfWidth(width=0.1)).named_parameters())
    between = dict(load(finished, OfDecay(decay=0.6)).named_parameters())
    assert kept.keys() == last.keys()
    for name, value in last.items():
        torch.testing.assert_close(kept[name], value.float(), rtol=1e-3, atol=1e-4)
    distinct = [ema, raw, kept, between]
    for index, one in enumerate(distinct):
        for other in distinct[index + 1 :]:
            assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("weights", ["raw", {"width": 0.1}])
def test_the_stage_generates_with_the_weights_of_its_section(
    weights: Any, trained: Path, finished: Path
) -> None:
    change(trained, sample={"weights": weights})
    run_stage("sample")
    ours, usual = (SampleSet(path / "out/sample/samples") for path in (trained, finished))
    assert len(ours) == len(usual)
    assert any(not torch.equal(ours[index], usual[index]) for index in range(len(ours)))


def test_single_pictures_are_of_the_weights_of_the_section_or_raw(trained: Path) -> None:
    generate.main(["--classes", "3", "--per-class", "1"])
    change(trained, sample={"weights": {"width": 0.1}})
    for options in ([], ["--raw"]):
        generate.main(["--classes", "3", "--per-class", "1", *options])
    found = [(trained / f"generated/00{n}/0000-3.png").read_bytes() for n in (1, 2, 3)]
    assert len(set(found)) == 3


def test_an_average_that_cannot_be_rebuilt_is_refused_before_the_training(project: Path) -> None:
    change(project, training={"averages": None}, sample={"weights": {"decay": 0.9}})
    with pytest.raises(ValueError, match=r"sample.weights: must be 'ema' or 'raw', as .* is null"):
        check.check_all()
    change(project, sample={"weights": {"decay": 0.9}})
    check.check_all()
    for wrong, message in (
        ("last", r"sample.weights: input should be 'ema' or 'raw', got 'last'"),
        ({"width": 0.3}, r"sample.weights.width: input should be less than or equal to 0.289"),
        ({"widht": 0.1}, r"sample.weights.widht is not a known key; did you mean 'width'"),
    ):
        change(project, sample={"weights": wrong})
        with pytest.raises(ValueError, match=message):
            check.check_all()


def test_a_training_without_averages_keeps_an_empty_list(trained: Path) -> None:
    change(trained, training={"averages": None, "steps": 2})
    run_stage("train_generator")
    assert read_index(trained / "out/train_generator/averages") == []


def test_an_average_that_is_long_for_the_training_is_warned_of(project: Path) -> None:
    change(project, training={"steps": 2000, "ema_decay": 0.9999})
    found = check.config_warnings(check.check_all())
    (warning,) = [text for text in found if text.startswith("training.ema")]
    assert warning.startswith("training.ema_decay 0.9999 is long for 2000 steps: 82 % of the avera")
    assert warning.endswith("with 0.9977 they are 1 %")
    change(project, training={"steps": 2000, "ema_decay": 0.997})
    found = check.config_warnings(check.check_all())
    assert not [text for text in found if text.startswith("training.ema")]
