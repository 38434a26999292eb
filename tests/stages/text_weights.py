"""The outputs of a project with texts as far as sampling needs them, written without a training."""

import json
from pathlib import Path
from typing import Any

import tiny_project as tiny
import torch

from mar.files import seal
from mar.latents.info import LatentsInfo
from mar.latents.posterior import LatentShape
from mar.model.conditions import TextShape
from mar.model.mar import MAR, GeneratorConfig
from mar.model.saved import save_mar
from mar.text.encoder import TextEncoder, TextSection
from mar.text.registry import save_encoder
from mar.text.words import Words, WordsConfig
from mar.tokenizers.kl import AutoencoderConfig
from mar.tokenizers.registry import build_tokenizer, save_tokenizer


WORDS = ("a", "blue", "left", "of", "red", "seven", "two")
SLOTS = 6


LEARNT, KNOWN = WordsConfig(kind="words", min_count=1), Words(WORDS)


def write_weights(
    project: Path, section: TextSection = LEARNT, encoder: TextEncoder = KNOWN
) -> None:
    """Write random weights of a generator that takes texts, and `params.yaml`."""
    params: dict[str, Any] = tiny.tiny_params()
    params["generator"]["condition_tokens"] = SLOTS
    (project / "params.yaml").write_text(json.dumps(params))
    out = project / "out"
    for name in ("prepare", "train_tokenizer", "encode", "encode_text", "train_generator"):
        (out / name).mkdir(parents=True)
    (out / "prepare/classes.json").write_text('["image"]')
    rng = torch.Generator().manual_seed(0)
    codec = build_tokenizer(_section(AutoencoderConfig, params["tokenizer"]))
    codec.initialize(rng)
    save_tokenizer(out / "train_tokenizer/tokenizer.safetensors", codec)
    digest = seal.digest(out / "train_tokenizer/tokenizer.safetensors")
    _info(digest).write(out / "encode/latents.json")
    save_encoder(out / "encode_text/encoder.json", section, encoder)
    text = TextShape(encoder.token_kind, encoder.size, encoder.identity)
    latent = LatentShape(2, 4, 4)
    model = MAR(_section(GeneratorConfig, params["generator"]), latent, 1, text=text)
    for parameter in model.parameters():  # as if trained: images of two texts differ
        parameter.data = torch.randn(parameter.shape, generator=rng) / 3
    for name in ("generator", "ema"):
        save_mar(out / f"train_generator/{name}.safetensors", model, digest)


def _section(kind: Any, fields: dict[str, Any]) -> Any:
    return kind.model_validate({key: fields[key] for key in kind.model_fields})


def _info(tokenizer: str) -> LatentsInfo:
    return LatentsInfo(
        tokenizer=tokenizer,
        transform="none",
        dtype="float16",
        flips=False,
        count=0,
        num_classes=1,
        codebook_size=None,
        shape=[2, 4, 4],
        latent_std=1.0,
        class_counts=[0],
        largest=None,
        mean=None,
        std=None,
        channel_mean=[],
        channel_std=[],
    )
