"""A tiny project of photographs and a tokenizer, encoded by each of several processes."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mar.tokenizers.registry import build_tokenizer, save_tokenizer
from mar.tokenizers.vq import VQConfig
from stages import encode, prepare
from stages.stage import Stage
from stages.tracking import Run


COUNT = 28  # 22 for training: shards of 4 images, the last one of 2
TOKENIZER = VQConfig(
    kind="vq",
    latent_channels=3,
    base_channels=8,
    channel_multipliers=[1, 2],
    num_res_blocks=1,
    encoder_attention=True,
    codebook_size=300,
    commitment_weight=0.25,
    revive_dead=False,
)


def make_project(folder: Path, **latents: Any) -> None:
    """Lay out photographs, their manifest and a tokenizer with random weights."""
    os.chdir(folder)
    for index in range(COUNT):
        file = Path("photos", "ab"[index % 2], f"{index:02d}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(index).integers(256, size=(8, 8, 3), dtype=np.uint8)
        Image.fromarray(values).save(file)
    data = {"source": "folder", "path": "photos", "image_size": 8, "held_out_fraction": 0.2}
    cached = {"dtype": "float16", "flips": True, "shard_images": 4, "batch_size": 3}
    sections = {
        "data": {**data, "max_unreadable": 0, "seed": 0},
        "latents": {**cached, "precision": "float32", "scale": None, **latents},
    }
    Path("params.yaml").write_text(json.dumps(sections))
    prepare.main(stage("prepare", "work"))
    model = build_tokenizer(TOKENIZER)
    model.initialize(torch.Generator().manual_seed(0))
    save_tokenizer(encode.TOKENIZER, model)


def run_encode(project: Path, out: str) -> None:
    """Encode the photographs to a folder, each process its share."""
    os.chdir(project)
    os.environ["MAR_WORKERS"] = "0"
    encode.main(stage("encode", f"work/{out}", out))


def stage(name: str, work: str, out: str = "") -> Stage:
    """Return a stage of its own folders, on the CPU and without a record."""
    return Stage(name, Path("out", out or name), Path(work), torch.device("cpu"), Run(name))
