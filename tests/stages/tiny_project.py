"""A tiny project: the default pipeline at toy sizes, in a folder of its own."""

import json
from importlib import import_module
from pathlib import Path

from ruamel.yaml import YAML

from stages import runner


ROOT = Path(__file__).parents[2]

TINY = {
    "data": {"image_size": 8},
    "tokenizer": {"latent_channels": 2, "base_channels": 4, "channel_multipliers": [1, 2]},
    "tokenizer_training": {
        "steps": 4,
        "warmup_steps": 1,
        "batch_size": 8,
        "curve_steps": 2,
        "preview_steps": 2,
    },
    "latents": {"flips": True, "shard_images": 500},
    "generator": {
        "size": {
            "encoder_width": 16,
            "encoder_blocks": 1,
            "encoder_heads": 2,
            "decoder_width": 16,
            "decoder_blocks": 1,
            "decoder_heads": 2,
        },
        "head": {
            "kind": "diffusion",
            "size": {"blocks": 1, "width": 16},
            "noise_samples_per_token": 2,
        },
        "dropout": 0.1,
    },
    "training": {
        "steps": 6,
        "warmup_steps": 1,
        "batch_size": 8,
        "curve_steps": 2,
        "preview_steps": 3,
    },
    "sample": {
        "num_images": 30,
        "num_steps": 4,
        "head": {"num_steps": 4},
        "shard_images": 12,
    },
    "reference": {"classifier": {"steps": 20, "batch_size": 32, "width": 4, "feature_width": 8}},
    "evaluate": {
        "is_splits": 2,
        "kid_subsets": 2,
        "kid_subset_size": 20,
        "bootstrap": 2,
        "infinity_points": 2,
    },
}


def tiny_params() -> dict[str, dict[str, object]]:
    """Return the default `params.yaml` with toy sizes."""
    content = YAML(typ="safe").load((ROOT / "presets" / "digits.yaml").read_text())
    for section, changes in TINY.items():
        for key, value in changes.items():
            merge = isinstance(value, dict) and isinstance(content[section][key], dict)
            content[section][key] = {**content[section][key], **value} if merge else value
    return content


def make_project(folder: Path, params: dict[str, dict[str, object]]) -> Path:
    """Lay out a project whose code is this one's."""
    folder.mkdir(exist_ok=True)
    for name in ("mar", "stages", "dvc.yaml"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "params.yaml").write_text(json.dumps(params))
    return folder


def run_stage(name: str) -> None:
    """Run a stage in this process and the present folder."""
    runner.execute(name, import_module(f"stages.{name}").main)
