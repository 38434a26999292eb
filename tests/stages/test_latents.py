"""Latents are written and read the same, however many processes and devices take part."""

import shutil
from pathlib import Path

import pytest
import tiny_project as tiny

from mar.files.atomic import digest


@pytest.mark.parametrize("on_device", ["0", "1"])
def test_where_latents_are_held_changes_no_weight(
    on_device: str, project: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("prepare", "train_tokenizer", "encode"):
        shutil.copytree(finished / "out" / name, project / "out" / name)
    monkeypatch.setenv("MAR_CACHE_ON_DEVICE", on_device)
    tiny.run_stage("train_generator")
    weights = Path("out/train_generator/ema.safetensors")
    assert digest(project / weights) == digest(finished / weights)
