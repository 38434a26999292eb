"""Read and write weights under the names of the release (LTH14/mar).

The autoencoder's names are LDM's and ours alike; the generator's are translated by a table.
"""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from mar.files import weights


Table = Sequence[tuple[str, str]]

# (released, ours): prefixes of whole names; the first that fits is used.
GENERATOR_NAMES = (
    ("fake_latent", "transformer.null_embedding"),
    ("class_emb.", "transformer.class_embedding."),
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


def from_released(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the released generator's tensors to ours."""
    return {_rename(name, GENERATOR_NAMES, BLOCK_NAMES): value for name, value in tensors.items()}


def to_released(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename our generator's tensors to the released names."""
    names = [(ours, released) for released, ours in GENERATOR_NAMES]
    blocks = [(ours, released) for released, ours in BLOCK_NAMES]
    return {_rename(name, names, blocks): value for name, value in tensors.items()}


def check_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Check that released tensors are all those of a generator or an autoencoder, and no others.

    Raises:
        ValueError: tensors are missing, unknown, or of another shape; the message counts them and
            names the first of each kind by their released names.
    """
    translate = to_released if _is_generator(model) else dict[str, Tensor]
    expected = translate(model.state_dict())
    problems = {
        "missing": [name for name in expected if name not in tensors],
        "unknown": [name for name in tensors if name not in expected],
        "of another shape": [
            f"{name} {tuple(tensors[name].shape)}, expected {tuple(value.shape)}"
            for name, value in expected.items()
            if name in tensors and tensors[name].shape != value.shape
        ],
    }
    weights.refuse_misfits(problems, len(expected))


def load_released(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load released tensors into a generator or an autoencoder, as float32.

    Raises:
        ValueError: they do not fit, as `check_tensors` says; nothing was loaded.
    """
    check_tensors(model, tensors)
    ours = from_released(tensors) if _is_generator(model) else dict(tensors)
    model.load_state_dict({name: value.float() for name, value in ours.items()})


def _is_generator(model: nn.Module) -> bool:
    return hasattr(model, "transformer")


def _rename(name: str, prefixes: Table, parts: Table) -> str:
    for old, new in prefixes:
        if name.startswith(old):
            name = new + name.removeprefix(old)
            break
    if re.match(r"(diffloss\.net|head\.denoiser)\.", name):
        for old, new in parts:
            name = name.replace(old, new)
    return name
