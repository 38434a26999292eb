"""The names that `diffusers` gives to an autoencoder's tensors, and ours, which are LDM's."""

import re
from collections.abc import Mapping

from torch import Tensor, nn


# (ours, theirs): patterns of parts of names, all of which are applied in this order.
NAMES = (
    (r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets."),
    (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.up\.(\d+)\.block\.", r".up_blocks.\1.resnets."),
    (r"\.up\.(\d+)\.upsample\.", r".up_blocks.\1.upsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"\.attentions\.0\.norm\.", ".attentions.0.group_norm."),
    (r"\.attentions\.0\.([qkv])\.", r".attentions.0.to_\1."),
    (r"\.attentions\.0\.proj_out\.", ".attentions.0.to_out.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
)
# What attention's layers were called until diffusers 0.17; released files still have these names.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def to_ours(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename tensors to a model's, as float32; those with LDM's names keep them.

    The weights of attention are matrices there and 1x1 convolutions here (as they were there, too).

    Args:
        tensors: What the file holds, found to fit the model.
        model: The autoencoder that they are for.
    """
    expected = model.state_dict()
    sources = find(tensors, expected)
    return {
        name: tensors[sources[name]].reshape(value.shape).float()
        for name, value in expected.items()
    }


def find(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, str]:
    """Return for each of our names that of the tensor in the file, where there is one."""
    levels = count_levels(expected)
    given = {present_name(name): name for name in tensors}
    found: dict[str, str] = {}
    for name in expected:
        for candidate in (their_name(name, levels), name):
            if candidate in given and name not in found:
                found[name] = given[candidate]
    return found


def count_levels(expected: Mapping[str, Tensor]) -> int:
    """Return how many levels a decoder has, by its names."""
    return len({name.split(".")[2] for name in expected if name.startswith("decoder.up.")})


def their_name(name: str, levels: int) -> str:
    """Translate our name of a tensor; the decoder's levels are numbered the other way round."""
    name = re.sub(r"\.up\.(\d+)\.", lambda found: f".up.{levels - 1 - int(found[1])}.", name)
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def present_name(name: str) -> str:
    """Return what `diffusers` calls a tensor now, given its name now or before."""
    return re.sub(
        r"(\.attentions\.0\.)(query|key|value|proj_attn)\.",
        lambda found: f"{found[1]}{OLD_NAMES[found[2]]}.",
        name,
    )
