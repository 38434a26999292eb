"""The names that the release (LTH14/mar) gives to a generator's tensors, and ours.

The autoencoder's names are LDM's and ours alike.
"""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor


Table = Sequence[tuple[str, str]]

# (released, ours): prefixes of whole names; the first that fits is used.
GENERATOR_NAMES = (
    ("fake_latent", "transformer.condition.null_embedding"),
    ("class_emb.", "transformer.condition.class_embedding."),
    ("encoder_pos_embed_learned", "transformer.encoder_position"),
    ("decoder_pos_embed_learned", "transformer.decoder_position"),
    ("diffusion_pos_embed_learned", "transformer.head_position"),
    ("diffloss.net.time_embed.mlp.", "head.denoiser.time_mlp."),
    ("diffloss.net.cond_embed.", "head.denoiser.z_proj."),
    ("diffloss.net.input_proj.", "head.denoiser.input_proj."),
    ("diffloss.net.res_blocks.", "head.denoiser.blocks."),
    ("diffloss.net.final_layer.", "head.denoiser.final."),
    ("", "transformer."),
)
# Parts inside a denoiser's block.
BLOCK_NAMES = ((".in_ln.", ".norm."), (".adaLN_modulation.", ".modulation."))
CLASSES = "class_emb.weight"  # the class embedding, by its released name


def from_released(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the released generator's tensors to ours, as float32."""
    return {
        _rename(name, GENERATOR_NAMES, BLOCK_NAMES): value.float()
        for name, value in tensors.items()
    }


def to_released(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename our generator's tensors to the released names."""
    names = [(ours, released) for released, ours in GENERATOR_NAMES]
    blocks = [(ours, released) for released, ours in BLOCK_NAMES]
    return {_rename(name, names, blocks): value for name, value in tensors.items()}


def _rename(name: str, prefixes: Table, parts: Table) -> str:
    for old, new in prefixes:
        if name.startswith(old):
            name = new + name.removeprefix(old)
            break
    if re.match(r"(diffloss\.net|head\.denoiser)\.", name):
        for old, new in parts:
            name = name.replace(old, new)
    return name
