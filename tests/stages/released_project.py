"""Tiny projects that begin with files of the released layout."""

import json
import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import tiny_project as tiny
import torch
from torch import Tensor

from mar.latents.posterior import LatentShape
from mar.model.mar import MAR, GeneratorConfig
from mar.released.names import to_released
from mar.tokenizers.kl import AutoencoderConfig
from mar.tokenizers.registry import build_tokenizer


KL16, MAR_FILE = Path("files/kl16.ckpt"), Path("files/checkpoint-last.pth")


def released_params(**training: Any) -> dict[str, Any]:
    """Return toy sizes for released weights that are used as they are."""
    params: dict[str, Any] = tiny.tiny_params()
    file = {"source": "released", "sha256": None}
    params["tokenizer"] |= {**file, "path": str(KL16)}
    params["generator"] |= {**file, "path": str(MAR_FILE), "weights": "model_ema"}
    params["generator"]["classes"] = "released"
    params["latents"]["scale"] = 0.2325
    params["tokenizer_training"]["steps"] = 0
    params["training"] |= {"steps": 0, **training}
    return params


def write_params(params: dict[str, Any]) -> None:
    Path("params.yaml").write_text(json.dumps(params))


def random_weights(model: torch.nn.Module, seed: int) -> dict[str, Tensor]:
    """Return weights of a model that no training would begin with."""
    rng = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, generator=rng) / math.sqrt(value[..., 0].numel() + 1)
        for name, value in model.state_dict().items()
    }


def write_files(params: dict[str, Any]) -> None:
    """Write files in the released layout, in the present folder."""
    sections = {
        name: {key: value for key, value in params[name].items() if key in kind.model_fields}
        for name, kind in {"tokenizer": AutoencoderConfig, "generator": GeneratorConfig}.items()
    }
    config = AutoencoderConfig.model_validate(sections["tokenizer"])
    codec = build_tokenizer(config)
    model = MAR(GeneratorConfig.model_validate(sections["generator"]), LatentShape(2, 4, 4), 10)
    KL16.parent.mkdir(exist_ok=True)
    weights = random_weights(codec, 1)
    for name in ("quant_conv.weight", "quant_conv.bias"):
        weights[name][:2] *= 30  # the means of latents, whose std is so near 1 / 0.2325
    torch.save({"model": weights}, KL16)
    content = {
        "model": to_released(random_weights(model, 2)),
        "model_ema": to_released(random_weights(model, 3)),
        "optimizer": {"state": {}},
        "epoch": 799,
        "args": Namespace(model="mar_tiny"),
    }
    torch.save(content, MAR_FILE)
