"""Tiny text encoders with random weights, in the folders that Hugging Face's library writes."""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch


WORDS = ["a", "blue", "green", "of", "red", "seven", "square", "the", "two"]
SPECIAL = ["<pad>", "</s>", "<unk>", "<s>"]
VOCABULARY = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
SIZES: dict[str, Any] = {
    "vocab_size": 16,
    "hidden_size": 12,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 3,
    "eos_token_id": 1,
}
T5: dict[str, Any] = {
    "vocab_size": 16,
    "d_model": 12,
    "d_kv": 6,
    "d_ff": 16,
    "num_layers": 2,
    "num_heads": 2,
    "feed_forward_proj": "gated-gelu",
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}


def write_tokenizer(folder: Path, *, begins: bool = False) -> None:
    """Write a tokenizer of whole words, which ends each text and may begin it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{'<s> ' if begins else ''}$A </s>", special_tokens=[("</s>", 1), ("<s>", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def write_encoder(folder: Path, kind: str = "t5", seed: int = 0) -> Path:
    """Write a model of a kind and its tokenizer."""
    hf: Any = import_module("transformers")
    random = torch.random.get_rng_state()
    torch.manual_seed(seed)
    match kind:
        case "t5":  # with its decoder, as it is distributed
            model = hf.T5Model(hf.T5Config(**T5))
        case "clip":
            model = hf.CLIPTextModel(hf.CLIPTextConfig(**SIZES, max_position_embeddings=7))
        case "siglip":
            sizes = SIZES | {"projection_size": 12}
            model = hf.SiglipTextModel(hf.SiglipTextConfig(**sizes, max_position_embeddings=7))
        case "bert":  # with the layers that are left out
            model = hf.BertModel(hf.BertConfig(**SIZES, max_position_embeddings=7))
        case "llama":
            model = hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, max_position_embeddings=7))
        case _:
            raise ValueError(kind)
    with torch.no_grad():  # fresh norms and biases hide faults
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    torch.random.set_rng_state(random)
    model.save_pretrained(folder)
    write_tokenizer(folder, begins=kind in ("clip", "llama", "bert"))
    return folder


def section(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return section `text` for a folder."""
    fields: dict[str, Any] = {
        "kind": "transformers",
        "path": str(folder),
        "tokenizer": None,
        "sha256": None,
        "layer": -1,
        "precision": "float32",
        "batch_size": 2,
        "cache": {"dtype": "float16", "shard_captions": 2},
    }
    return fields | changes
