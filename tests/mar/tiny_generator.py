"""A tiny generator's section of `params.yaml`, which tests change where they must."""

from typing import Any


FIELDS: dict[str, Any] = {
    "size": {
        "encoder_width": 16,
        "encoder_blocks": 2,
        "encoder_heads": 2,
        "decoder_width": 24,
        "decoder_blocks": 2,
        "decoder_heads": 3,
    },
    "attention": "bidirectional",
    "order": "random",
    "patch_size": 2,
    "condition_tokens": 3,
    "dropout": 0.1,
    "label_drop": 0.1,
    "mask_ratio": {"min": 0.7, "std": 0.25},
    "head": {
        "kind": "diffusion",
        "size": {"blocks": 2, "width": 20},
        "noise_samples_per_token": 2,
    },
}
