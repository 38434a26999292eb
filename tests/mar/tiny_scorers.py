"""Tiny models that score images by their prompts, with random weights, in folders."""

from pathlib import Path
from typing import Any

import torch


WORDS = [
    "a", "photo", "of", "object", "dog", "cat", "red", "orange", "yellow", "green", "blue",
    "purple", "pink", "brown", "black", "white", "colored", "-",
]  # fmt: skip
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
TOKENS = 12  # of a text, at most


def write_clip(folder: Path) -> Path:
    """Write a CLIP for images of 8 px, whose texts have at most `TOKENS` tokens."""
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>",
    ).save_pretrained(folder)  # fmt: skip
    size: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
                            "num_attention_heads": 2}  # fmt: skip
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    text = {**size, **ends, "vocab_size": len(vocabulary), "max_position_embeddings": TOKENS}
    vision = {**size, "image_size": 8, "patch_size": 4}
    config = hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=6)
    _save(hf.CLIPModel, config, folder)
    shape = {"height": 8, "width": 8}
    hf.CLIPImageProcessor(size={"shortest_edge": 8}, crop_size=shape).save_pretrained(folder)
    return folder


def write_mask2former(folder: Path, label: int, num_labels: int = 80) -> Path:
    """Write a Mask2Former that takes everything for the class with the number `label`."""
    import transformers

    hf: Any = transformers  # typed in part
    backbone = hf.SwinConfig(
        image_size=32, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = hf.Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32,
        encoder_feedforward_dim=16, dim_feedforward=16, num_attention_heads=2, encoder_layers=1,
        decoder_layers=2, num_queries=5, num_labels=num_labels,
    )  # fmt: skip
    network = _save(hf.Mask2FormerForUniversalSegmentation, config, folder)
    network.class_predictor.bias.data[label] = 20.0
    network.save_pretrained(folder)
    size = {"shortest_edge": 64, "longest_edge": 96}
    hf.Mask2FormerImageProcessor(size=size, size_divisor=32).save_pretrained(folder)
    return folder


def _save(kind: Any, config: Any, folder: Path) -> Any:
    """Write a model with random weights, always the same ones."""
    import transformers as hf

    hf.utils.logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = kind(config).eval()
    network.save_pretrained(folder)
    return network
