"""A stage's lineage follows its code, parameters and inputs, and dvc.lock tells what is current."""

from pathlib import Path
from typing import Any

import pytest

from stages import headline, lineage


STAGES: dict[str, Any] = {
    "prepare": {"params": ["data"], "outs": ["out/prepare/list"]},
    "encode": {"deps": ["out/prepare/list"], "outs": [{"out/encode/latents": {"cache": True}}]},
    "train": {"deps": ["out/encode/latents", "code"], "params": ["train"], "outs": ["out/train/w"]},
    "sample": {
        "deps": ["out/train/w"],
        "params": ["sample.scale"],
        "metrics": [{"out/sample/metrics.json": {"cache": False}}],
    },
}
PARAMS = {"data": {"path": "x"}, "train": {"lr": 1}, "sample": {"scale": 2, "other": 3}}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path, text in {"out/prepare/list": "images", "code/model.py": "model"}.items():
        Path(path).parent.mkdir(parents=True)
        Path(path).write_text(text)


def changed(params: dict[str, Any] | None = None) -> set[str]:
    """Return the stages whose lineage is another one than at first."""
    now = lineage.digests(STAGES, params or PARAMS)
    return {name for name in STAGES if now.get(name) != FIRST[name]}


FIRST: dict[str, str] = {}


@pytest.fixture(autouse=True)
def first(project: None) -> None:
    FIRST.clear()
    FIRST.update(lineage.digests(STAGES, PARAMS))
    assert FIRST.keys() == STAGES.keys()
    assert len(set(FIRST.values())) == len(STAGES)


def test_a_parameter_changes_its_stage_and_those_after_it() -> None:
    assert changed() == set()
    assert changed({**PARAMS, "train": {"lr": 2}}) == {"train", "sample"}
    assert changed({**PARAMS, "sample": {"scale": 1, "other": 3}}) == {"sample"}
    assert changed({**PARAMS, "sample": {"scale": 2, "other": 1}}) == set()


def test_code_in_a_folder_counts_and_what_python_compiles_of_it_does_not() -> None:
    Path("code/__pycache__").mkdir()
    Path("code/__pycache__/model.pyc").write_bytes(b"compiled")
    assert changed() == set()
    Path("code/model.py").write_text("another model")
    assert changed() == {"train", "sample"}


def test_the_data_count_by_what_was_made_of_them() -> None:
    assert changed({**PARAMS, "data": {"path": "moved"}}) == set()
    Path("out/prepare/list").write_text("other images")
    assert changed() == set(STAGES)


def test_before_the_data_are_listed_nothing_has_a_lineage() -> None:
    Path("out/prepare/list").unlink()
    assert lineage.digests(STAGES, PARAMS) == {}


def test_ancestors_are_found_by_way_of_others() -> None:
    assert lineage.ancestors("sample", STAGES) == {"train", "encode", "prepare"}
    assert lineage.ancestors("prepare", STAGES) == set()
    assert lineage.ancestors("unknown", STAGES) == set()


def test_headlines_have_stable_names_and_are_numbers() -> None:
    assert headline.select("train_generator", {"loss": 0.5, "lr": 1.0, "steps": 3}) == {
        "generator_loss": 0.5
    }
    found = headline.select(
        "evaluate",
        {
            "samples/fid": 2.0,
            "samples/inception_score": 9.0,
            "samples/inception_score_std": 0.1,
            "held_out/fid": 1.0,
            "extractor": "inception",
            "samples/kid": float("nan"),
        },
    )
    assert found == {"fid": 2.0, "inception_score": 9.0}
    assert all(map(headline.is_score, found))
    assert headline.select("sample", {"seconds": 3, "images_per_second": 2, "num_images": 5}) == {
        "seconds_sample": 3,
        "images_per_second_sample": 2,
    }
    curve = {"images_per_second": 7.0, "mean_images_per_second": 6.0}
    assert headline.select("train_tokenizer", curve) == {"images_per_second_train_tokenizer": 6.0}
