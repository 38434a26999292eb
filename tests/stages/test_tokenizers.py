"""Every kind of tokenizer passes the stages that train it, try it and cache its latents."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import tiny_project as tiny
import torch

from mar import tokenizer
from mar.images import to_float
from mar.latents import LatentCache, LatentsInfo
from mar.posterior import Posterior
from mar.vq import VQ


STAGES = ("prepare", "reference", "train_tokenizer", "reconstruct", "encode")
LATENTS = {"mean", "std", "channel_std_min", "channel_std_max", "active_channels"}
SECTIONS: dict[str, dict[str, Any]] = {
    "vq": {
        "kind": "vq",
        "latent_channels": 2,
        "base_channels": 4,
        "channel_multipliers": [1, 2],
        "num_res_blocks": 1,
        "encoder_attention": False,
        "codebook_size": 20,
        "commitment_weight": 0.25,
        "revive_dead": True,
    },
    "pixels": {"kind": "pixels"},
}


def run_stages(project: Path, kind: str) -> dict[str, dict[str, Any]]:
    """Run the stages and return their metrics."""
    params = tiny.tiny_params()
    params["tokenizer"] = SECTIONS[kind]
    (project / "params.yaml").write_text(json.dumps(params))
    for stage in STAGES:
        tiny.run_stage(stage)
    return {
        stage: json.loads((project / "out" / stage / "metrics.json").read_text())
        for stage in STAGES
    }


def curves(project: Path) -> tuple[list[str], list[dict[str, str]]]:
    with (project / "out/train_tokenizer/curves.csv").open() as file:
        reader = csv.DictReader(file)
        return list(reader.fieldnames or []), list(reader)


def previews(project: Path) -> list[str]:
    return sorted(path.name for path in (project / "out/train_tokenizer/previews").iterdir())


def open_cache(project: Path) -> LatentCache:
    folder = project / "out/encode/latents"
    return LatentCache(folder, LatentsInfo.read(folder.with_suffix(".json")))


def test_a_codebook_is_trained_tried_and_cached(project: Path) -> None:
    metrics = run_stages(project, "vq")
    assert metrics["train_tokenizer"]["steps"] == 4
    assert 0 < metrics["reconstruct"]["codebook_use"] <= 1
    assert 1 <= metrics["reconstruct"]["perplexity"] <= 20
    latents = metrics["reconstruct"]["latents"]
    assert set(latents) == LATENTS
    assert latents["channel_std_min"] <= latents["channel_std_max"]
    names, rows = curves(project)
    assert {"loss", "l1", "codebook", "commitment", "codebook_use", "perplexity"} <= set(names)
    assert [int(row["step"]) for row in rows] == [2, 4]

    cache = open_cache(project)
    assert cache.info.codebook_size == 20
    everything, plain = torch.arange(len(cache)), torch.zeros(len(cache), dtype=torch.bool)
    latents = cache.moments(everything, plain)
    assert latents.shape[1:] == (2, 4, 4)
    model = tokenizer.load(project / "out/train_tokenizer/tokenizer.safetensors")
    assert isinstance(model, VQ)
    # But for latents that the cache's precision moves across a border.
    same = model.quantise(latents) == cache.codes(everything, plain)
    assert float(same.float().mean()) > 0.99
    assert not torch.equal(cache.codes(everything, ~plain), cache.codes(everything, plain))


def test_pixels_pass_untrained_and_unchanged(project: Path) -> None:
    metrics = run_stages(project, "pixels")
    assert metrics["train_tokenizer"]["steps"] == metrics["train_tokenizer"]["parameters"] == 0
    assert metrics["reconstruct"]["ssim"] == pytest.approx(1)
    assert not {"psnr", "codebook_use"} & set(metrics["reconstruct"])
    assert metrics["reconstruct"]["classifier_rfid_held_out"] == pytest.approx(0, abs=1e-3)
    baseline = metrics["reference"]["held_out"]["classifier_fid"]  # they are the held-out images
    assert metrics["reconstruct"]["classifier_rfid_train"] == pytest.approx(baseline, rel=1e-3)
    assert curves(project) == (["step", "loss"], [])
    assert previews(project) == ["step-0000000.png"]

    cache = open_cache(project)
    assert cache.info.codebook_size is None
    assert cache.info.shape == [3, 8, 8]
    moments = cache.moments(torch.tensor([0, 0]), torch.tensor([False, True]))
    assert torch.equal(moments[1], moments[0].flip(2))
    assert Posterior.of(moments, 3).log_variance is None
    levels = torch.arange(256).to(torch.uint8).expand(1, 3, 1, 256)
    grey = to_float(levels).half().float()
    assert torch.isin(moments, grey).all()
