"""Sizes that no machine can hold are refused before anything is allocated, and no preset is."""

import copy
import json
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_project as tiny
import torch

from stages import check, memory, presets


CPU = torch.device("cpu")


def change(key: str, value: object) -> None:
    """Set a key of the tiny project's `params.yaml`, without its other checks."""
    content: Any = copy.deepcopy(tiny.tiny_params())
    *parents, last = key.split(".")
    section = content
    for parent in parents:
        section = section[parent]
    section[last] = value
    Path("params.yaml").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("key", "value", "limit"),
    [
        ("data.image_size", 1_000_000_000, "16384"),
        ("generator.size.encoder_width", 96_000_000, "65536"),
        ("generator.size.decoder_blocks", 10**7, "1000"),
        ("generator.head.size.width", 10**7, "65536"),
        ("generator.head.noise_samples_per_token", 10**6, "1000"),
        ("tokenizer.base_channels", 10**9, "65536"),
        ("training.batch_size", 10**12, "1,000,000,000"),
        ("training.steps", 10**26, "1,000,000,000"),
        ("tokenizer_training.steps", 10**400, "1,000,000,000"),
        ("tokenizer_training.curve_steps", 10**10, "1,000,000,000"),
        ("latents.shard_images", 10**30, "1,000,000,000"),
        ("sample.num_images", 2**63, "1,000,000,000"),
        ("sample.num_steps", 10**18, "1,000,000,000"),
        ("reference.num_features", 10**11, "1,000,000,000"),
        ("reference.classifier.width", 10**6, "65536"),
        ("evaluate.kid_subsets", 10**9, "100000"),
    ],
)
@pytest.mark.usefixtures("project")
def test_absurd_numbers_are_refused_by_their_key(key: str, value: int, limit: str) -> None:
    change(key, value)
    with pytest.raises(ValueError, match=rf"params\.yaml: {key}: .*{limit}, got {value}"):
        check.check_all()


@pytest.mark.usefixtures("project")
def test_a_seed_may_be_any_number() -> None:
    change("training.seed", 20_261_125_063_000)
    check.check_all()


LARGE = [
    ("train_generator", "generator.size.encoder_width", 32_768, "generator"),
    ("train_generator", "training.batch_size", 10**9, "training.batch_size"),
    ("train_tokenizer", "tokenizer_training.batch_size", 10**9, "tokenizer_training.batch_size"),
    ("train_tokenizer", "tokenizer.base_channels", 32_768, "tokenizer"),
    ("train_tokenizer", "data.image_size", 16_384, "data.image_size"),
    ("encode", "tokenizer.base_channels", 65_536, "tokenizer"),
    ("sample", "generator.size.decoder_width", 65_536, "generator"),
    ("reference", "reference.classifier.width", 65_536, "reference.classifier.width"),
    ("reference", "reference.classifier.batch_size", 10**9, "reference.classifier.batch_size"),
]


@pytest.mark.parametrize(("stage", "key", "value", "named"), LARGE)
@pytest.mark.usefixtures("project")
def test_what_memory_cannot_hold_is_said_at_once(
    stage: str, key: str, value: int, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available", lambda device: 24 * 10**9)
    memory.check(stage, CPU)
    change(key, value)
    started = time.monotonic()
    expected = (
        rf"{stage} takes [\d.,e+]+ GB of memory at the very least \({named} [\d.,e+]+ GB, .*"
        r"cpu has 24 GB"
    )
    with pytest.raises(ValueError, match=expected):
        memory.check(stage, CPU)
    assert time.monotonic() - started < 20


@pytest.mark.usefixtures("project")
def test_a_stage_asks_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda device: 1000)
    with pytest.raises(ValueError, match=r"reference takes .* and cpu has 1e-06 GB"):
        tiny.run_stage("reference")
    assert not Path("out/reference").exists()


@pytest.mark.parametrize("name", presets.names())
def test_no_preset_is_refused_on_a_machine_that_can_run_it(
    name: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available", lambda device: 40 * 10**9)
    Path("params.yaml").write_text(presets.resolve(name, tiny.ROOT / "presets"))
    for stage in memory.NEEDS:
        memory.check(stage, CPU)


def test_the_memory_of_this_machine_is_known() -> None:
    assert 10**8 < memory.available(CPU) < 10**14
