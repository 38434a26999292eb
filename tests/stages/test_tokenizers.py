"""Every kind of tokenizer passes the stages that train it, try it and cache its latents."""

import csv
import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import tiny_project as tiny
import torch
from pydantic import TypeAdapter
from safetensors.torch import save_file

from mar.data.images import to_float
from mar.latents import scale as latent_scale
from mar.latents.cache import LatentCache
from mar.latents.info import LatentsInfo
from mar.latents.posterior import Posterior
from mar.released.diffusers_folder import COMPARED, WEIGHTS
from mar.released.tokenizer import TokenizerSource
from mar.tokenizers.interface import Tokenizer
from mar.tokenizers.registry import build_tokenizer, load_tokenizer
from mar.tokenizers.vq import VQ


STAGES = ("train_tokenizer", "reconstruct", "encode")
BEFORE = ("prepare", "reference")  # stages that know nothing of a tokenizer
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
    "detok": {
        "kind": "detok",
        "latent_channels": 2,
        "patch_size": 2,
        "grid": 4,
        "encoder": {"width": 16, "blocks": 1, "heads": 2},
        "decoder": {"width": 16, "blocks": 1, "heads": 2},
        "noise_std": 3.0,
        "drop_ratio_max": 0.7,
        "kl_weight": 0.05,
        "decoder_from_step": 2,
    },
    "diffusers": {
        "kind": "diffusers",
        "path": "models/vae",
        "sha256": None,
        "latent_channels": 2,
        "block_out_channels": [4, 8],
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "mid_block_add_attention": False,
        "kl_weight": 1e-6,
    },
}


def run_stages(
    project: Path,
    finished: Path,
    kind: str,
    *,
    steps: int = 4,
    between: Callable[[str], None] = lambda stage: None,
) -> dict[str, dict[str, Any]]:
    """Run the stages that know the tokenizer, something after each; return all metrics."""
    shutil.copytree(finished / "out", project / "out")
    for stage in STAGES:
        shutil.rmtree(project / "out" / stage)
    params = tiny.tiny_params()
    params["tokenizer"] = SECTIONS[kind]
    params["tokenizer_training"]["steps"] = steps
    (project / "params.yaml").write_text(json.dumps(params))
    for stage in STAGES:
        tiny.run_stage(stage)
        between(stage)
    return {
        stage: json.loads((project / "out" / stage / "metrics.json").read_text())
        for stage in (*BEFORE, *STAGES)
    }


def curves(project: Path) -> tuple[list[str], list[dict[str, str]]]:
    with (project / "out/train_tokenizer/curves.csv").open() as file:
        reader = csv.DictReader(file)
        return list(reader.fieldnames or []), list(reader)


def previews(project: Path) -> list[str]:
    return sorted(path.name for path in (project / "work/previews/train_tokenizer").iterdir())


def open_cache(project: Path) -> LatentCache:
    folder = project / "out/encode/latents"
    return LatentCache(folder, LatentsInfo.read(folder.with_suffix(".json")))


def test_a_codebook_is_trained_tried_and_cached(project: Path, finished: Path) -> None:
    metrics = run_stages(project, finished, "vq")
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
    model = load_tokenizer(project / "out/train_tokenizer/tokenizer.safetensors")
    assert isinstance(model, VQ)
    # But for latents that the cache's precision moves across a border.
    same = model.quantise(latents) == cache.code_indices(everything, plain)
    assert float(same.float().mean()) > 0.99
    assert not torch.equal(
        cache.code_indices(everything, ~plain), cache.code_indices(everything, plain)
    )


def test_lpips_is_looked_for_among_downloads(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(project / "torch"))
    params = tiny.tiny_params()
    params["data"]["image_size"] = 16
    params["tokenizer"] = {"kind": "pixels"}
    params["generator"]["patch_size"] = 4
    (project / "params.yaml").write_text(json.dumps(params))
    for name in ("prepare", "reference", "train_tokenizer", "reconstruct"):
        tiny.run_stage(name)
    assert "LPIPS" not in capfd.readouterr().err
    kept = project / "torch/hub/checkpoints/vgg16-397923af.pth"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"no weights")
    tiny.run_stage("reconstruct")
    said = capfd.readouterr().err
    assert "reconstruct: no LPIPS: " in said
    assert "vgg16-397923af.pth has the SHA-256" in said


def test_pixels_pass_untrained_and_unchanged(project: Path, finished: Path) -> None:
    metrics = run_stages(project, finished, "pixels")
    assert metrics["train_tokenizer"]["steps"] == metrics["train_tokenizer"]["parameters"] == 0
    assert metrics["reconstruct"]["ssim"] == pytest.approx(1)
    assert not {"psnr", "codebook_use"} & set(metrics["reconstruct"])
    assert metrics["reconstruct"]["classifier_rfid_held_out_359"] == pytest.approx(0, abs=1e-3)
    baseline = metrics["reference"]["held_out"][
        "classifier_fid_359"
    ]  # they are the held-out images
    assert metrics["reconstruct"]["classifier_rfid_train_359"] == pytest.approx(baseline, rel=1e-3)
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


def test_a_denoising_tokenizer_is_trained_tuned_and_cached(
    project: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latent_scale, "LEAST_SIGNAL", 0.0)  # four steps give noise
    metrics = run_stages(project, finished, "detok")
    assert metrics["train_tokenizer"]["steps"] == 4
    names, rows = curves(project)
    assert {"loss", "l1", "kl"} <= set(names)
    assert all(float(row["kl"]) > 0 for row in rows)  # of clean latents, too
    cache = open_cache(project)
    assert cache.info.shape == [2, 4, 4]
    assert metrics["encode"]["count"] == len(cache)
    everything, plain = torch.arange(len(cache)), torch.zeros(len(cache), dtype=torch.bool)
    posterior = Posterior.of(cache.moments(everything, plain), 2)
    assert posterior.log_variance is not None
    assert float(posterior.mean.std()) > 0


def test_a_folder_is_imported_and_needed_no_more(
    project: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its relative path begins at the repository, also from a temporary copy that DVC made."""
    repository = tmp_path / "repository"
    config = TypeAdapter(TokenizerSource).validate_python(SECTIONS["diffusers"])
    made = build_tokenizer(config)
    made.initialize(torch.Generator().manual_seed(7))
    folder = write_diffusers_folder(repository / "models/vae", made)
    monkeypatch.setenv("DVC_ROOT", str(repository))

    def take_away(stage: str) -> None:
        if stage == "train_tokenizer":
            shutil.rmtree(folder)

    metrics = run_stages(project, finished, "diffusers", steps=0, between=take_away)
    assert metrics["train_tokenizer"]["steps"] == 0
    assert metrics["train_tokenizer"]["parameters"] > 0
    assert previews(repository) == ["step-0000000.png"]
    model = load_tokenizer(project / "out/train_tokenizer/tokenizer.safetensors")
    assert model.config == made.config
    for name, value in made.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert open_cache(project).info.shape == [2, 4, 4]
    assert metrics["encode"]["std"] > 0
    assert metrics["reconstruct"]["ssim"] < 1


def test_the_file_does_not_say_where_its_folder_was(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build_tokenizer(TypeAdapter(TokenizerSource).validate_python(SECTIONS["diffusers"]))
    made.initialize(torch.Generator().manual_seed(7))
    write_diffusers_folder(tmp_path / "models/vae", made)
    shutil.copytree(tmp_path / "models/vae", tmp_path / "elsewhere")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    params = tiny.tiny_params()
    params["tokenizer_training"]["steps"] = 0
    digest = sha256((tmp_path / "elsewhere" / WEIGHTS).read_bytes()).hexdigest()
    written: list[bytes] = []
    for place in ({}, {"path": "elsewhere", "sha256": digest}):
        params["tokenizer"] = {**SECTIONS["diffusers"], **place}
        (project / "params.yaml").write_text(json.dumps(params))
        for stage in ("prepare", "train_tokenizer"):
            tiny.run_stage(stage)
        written.append((project / "out/train_tokenizer/tokenizer.safetensors").read_bytes())
    assert written[0] == written[1]


def test_a_folder_that_is_missing_stops_the_stage(project: Path, finished: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.path: there is no folder .*models/vae"):
        run_stages(project, finished, "diffusers", steps=0)


def write_diffusers_folder(folder: Path, model: Tokenizer) -> Path:
    """Write a tiny autoencoder of two levels as `diffusers` would."""
    names = {
        ".down.0.block.0.": ".down_blocks.0.resnets.0.",
        ".down.1.block.0.": ".down_blocks.1.resnets.0.",
        ".down.0.downsample.": ".down_blocks.0.downsamplers.0.",
        ".up.1.block.": ".up_blocks.0.resnets.",  # the first to be applied
        ".up.0.block.": ".up_blocks.1.resnets.",
        ".up.1.upsample.": ".up_blocks.0.upsamplers.0.",
        ".mid.block_1.": ".mid_block.resnets.0.",
        ".mid.block_2.": ".mid_block.resnets.1.",
        ".nin_shortcut.": ".conv_shortcut.",
        "encoder.norm_out.": "encoder.conv_norm_out.",
        "decoder.norm_out.": "decoder.conv_norm_out.",
    }
    tensors: dict[str, torch.Tensor] = {}
    for name, value in model.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        tensors[name] = value
    described = {
        "_class_name": "AutoencoderKL",
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        **{key: SECTIONS["diffusers"][key] for key in COMPARED},
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(described))
    save_file(tensors, folder / WEIGHTS)
    return folder
