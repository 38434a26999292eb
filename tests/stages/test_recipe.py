"""A stage trains a tokenizer by the whole recipe, refuses it early without weights, and goes on
where it was killed, in the adversarial phase too.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import tiny_project as tiny
import torch

from mar.files.atomic import digest
from mar.tokenizers.registry import load_tokenizer


OUT = "out/train_tokenizer"
START = 10
RECIPE: dict[str, Any] = {
    "learned_variance": True,
    "perceptual": {
        "kind": "classifier",
        "weight": 0.1,
        "classifier": {
            "seed": 1,
            "width": 4,
            "feature_width": 8,
            "steps": 20,
            "batch_size": 32,
            "lr": 0.002,
            "weight_decay": 0.05,
            "shift": 1,
            "flip": False,
            "noise": 64.0,
        },
    },
    "adversarial": {
        "start_step": START,
        "warmup_steps": 5,
        "weight": 0.5,
        "max_weight": 1.0e4,
        "lr": 0.002,
        "base_channels": 8,
        "num_layers": 1,
        "regulariser": {"kind": "lecam", "weight": 0.01, "decay": 0.99},
    },
}


def prepare(project: Path, **training: Any) -> None:
    params = tiny.tiny_params()
    params["tokenizer_training"] |= {**RECIPE, **training}
    (project / "params.yaml").write_text(json.dumps(params))
    tiny.run_stage("prepare")


def start(project: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "stages.train_tokenizer"],
        cwd=project,
        # One thread, as in this process: sums over two are rounded otherwise.
        env={**os.environ, "MAR_CHECKPOINT_SECONDS": "1", "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(project: Path, step: int) -> Path:
    """Return the work folder once a checkpoint of a step, or of a later one, is there."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        for path in (project / "work/train_tokenizer").glob("*/checkpoints/step-*[0-9]"):
            if int(path.name.removeprefix("step-")) >= step:
                return path.parents[1]
        time.sleep(0.3)
    raise AssertionError("no checkpoint in time")


def curves(project: Path) -> list[dict[str, str]]:
    with (project / OUT / "curves.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_kill_9_in_the_adversarial_phase_and_resume_equals_an_undisturbed_run(
    project: Path,
) -> None:
    prepare(project, steps=80, curve_steps=5, preview_steps=80)
    killed = start(project)
    work = wait_for_step(project, START + 1)
    killed.send_signal(signal.SIGKILL)
    assert "train the classifier" in killed.communicate()[1]
    assert killed.returncode == -signal.SIGKILL
    assert not (project / OUT / "tokenizer.safetensors").exists()

    resumed = start(project)
    assert "train the classifier" not in resumed.communicate()[1]
    assert resumed.returncode == 0
    outputs = digest(project / OUT / "tokenizer.safetensors"), curves(project)
    assert not work.exists()

    (project / OUT / "tokenizer.safetensors").unlink()
    tiny.run_stage("train_tokenizer")
    assert outputs == (digest(project / OUT / "tokenizer.safetensors"), curves(project))


def test_the_whole_recipe_passes_and_shows_in_the_curves(project: Path) -> None:
    prepare(project, steps=START + 2, curve_steps=1)
    tiny.run_stage("train_tokenizer")
    rows = curves(project)
    assert [int(row["step"]) for row in rows] == list(range(1, START + 3))
    everywhere = {"loss", "l1", "perceptual", "nll", "log_variance", "kl", "grad_norm", "lr"}
    adversarial = {
        "adversarial", "generator_loss", "adaptive_weight", "discriminator_loss", "logits_real",
        "logits_fake", "discriminator_accuracy", "discriminator_grad_norm", "lecam",
    }  # fmt: skip
    assert rows[0].keys() == everywhere | adversarial | {"step"}
    for row in rows:
        known = {name for name, value in row.items() if value}
        begun = int(row["step"]) > START
        assert known == everywhere | {"step"} | (adversarial if begun else set())
    names = load_tokenizer(project / OUT / "tokenizer.safetensors").state_dict()
    assert {name.partition(".")[0] for name in names} == {
        "encoder", "decoder", "quant_conv", "post_quant_conv",
    }  # fmt: skip


def test_lpips_without_weights_is_refused_before_any_work(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise URLError("no network")

    lpips = {"kind": "lpips", "weight": 1.0, "weights": None, "weights_sha256": None}
    params = tiny.tiny_params()
    params["data"]["image_size"] = 16
    params["tokenizer"]["channel_multipliers"] = [1, 1, 2]
    params["tokenizer_training"]["perceptual"] = lpips
    (project / "params.yaml").write_text(json.dumps(params))
    tiny.run_stage("prepare")
    monkeypatch.setenv("TORCH_HOME", str(project))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(ValueError, match=r"perceptual\.weights is null and .* no network.*: none"):
        tiny.run_stage("train_tokenizer")
    assert not (project / OUT).exists()

    # Pixels are not trained, so nothing is needed.
    params["tokenizer"] = {"kind": "pixels"}
    params["sample"]["num_steps"] = 4
    (project / "params.yaml").write_text(json.dumps(params))
    tiny.run_stage("train_tokenizer")
    assert (project / OUT / "tokenizer.safetensors").is_file()
