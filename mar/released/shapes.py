"""Whether a file's tensors fit a model, and what their shapes tell of a generator (LTH14/mar)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mar.files import weights
from mar.heads import denoiser
from mar.heads.registry import HEADS
from mar.model.mar import MAR, SIZES, GeneratorConfig
from mar.released.generator import ReleasedGenerator
from mar.released.names import CLASSES, to_released


@dataclass(frozen=True)
class GeneratorShape:
    """What names and shapes tell of a generator: everything but the numbers of attention heads."""

    encoder_width: int
    encoder_blocks: int
    decoder_width: int
    decoder_blocks: int
    denoiser_width: int
    denoiser_blocks: int
    num_tokens: int
    channels: int
    condition_tokens: int
    num_classes: int

    @property
    def size(self) -> str | None:
        """Return the name of the size of the paper, if it has one."""
        for name, widths in SIZES.items():
            known = widths.model_dump(exclude={"encoder_heads", "decoder_heads"})
            head = denoiser.SIZES[name]
            known |= {"denoiser_width": head.width, "denoiser_blocks": head.blocks}
            if all(getattr(self, key) == value for key, value in known.items()):
                return name
        return None

    def __str__(self) -> str:
        widths = dict.fromkeys([self.encoder_width, self.decoder_width])  # one if they are equal
        return (
            f"{self.size or 'a custom size'} ({' and '.join(map(str, widths))} wide, "
            f"{self.encoder_blocks} + {self.decoder_blocks} blocks, "
            f"denoiser {self.denoiser_blocks} x {self.denoiser_width}, "
            f"{self.num_tokens} tokens of {self.channels} channels, "
            f"{self.condition_tokens} condition tokens, {self.num_classes} classes)"
        )


def check_layout(config: GeneratorConfig) -> None:
    """Refuse generators for which the release has no layout.

    Raises:
        ValueError: the message names the key, what was found and what was expected.
    """
    if config.attention != "bidirectional":
        raise ValueError(
            f"generator.attention: must be 'bidirectional' in the released layout, "
            f"got {config.attention!r}"
        )
    if not HEADS[config.head.kind].head.has_released_layout:
        known = [repr(name) for name, kind in HEADS.items() if kind.head.has_released_layout]
        raise ValueError(
            f"generator.head.kind: must be {' or '.join(known)} in the released layout, "
            f"got {config.head.kind!r}"
        )


def describe_generator(tensors: Mapping[str, Tensor]) -> GeneratorShape:
    """Tell what generator some tensors make, from their released names and their shapes.

    Raises:
        ValueError: a tensor that tells it is missing or has another number of dimensions.
    """
    encoder_width, channels = _shape(tensors, "z_proj.weight", 2)
    decoder_width, _ = _shape(tensors, "decoder_embed.weight", 2)
    denoiser_width, _ = _shape(tensors, "diffloss.net.input_proj.weight", 2)
    _, num_tokens, _ = _shape(tensors, "diffusion_pos_embed_learned", 3)
    _, length, _ = _shape(tensors, "encoder_pos_embed_learned", 3)
    num_classes, _ = _shape(tensors, "class_emb.weight", 2)
    return GeneratorShape(
        encoder_width=encoder_width,
        encoder_blocks=_count(tensors, "encoder_blocks"),
        decoder_width=decoder_width,
        decoder_blocks=_count(tensors, "decoder_blocks"),
        denoiser_width=denoiser_width,
        denoiser_blocks=_count(tensors, "diffloss.net.res_blocks"),
        num_tokens=num_tokens,
        channels=channels,
        condition_tokens=length - num_tokens,
        num_classes=num_classes,
    )


def check_generator(
    path: Path, tensors: Mapping[str, Tensor], model: MAR, section: ReleasedGenerator
) -> None:
    """Check that the tensors of a file are those of a generator like the model.

    Args:
        path: The file, for the message.
        tensors: What it holds, under the released names.
        model: The generator.
        section: Section `generator`; says whether the classes must be the file's.

    Raises:
        ValueError: they are those of another; the message describes both.
    """
    expected = describe_generator(to_released(model.state_dict()))
    try:
        found = describe_generator(tensors)
    except ValueError as error:
        raise ValueError(f"{path} does not hold a whole generator: {error}") from None
    if section.is_new(CLASSES):
        expected = replace(expected, num_classes=found.num_classes)
    if found == expected:
        return
    if found == replace(expected, num_classes=found.num_classes):
        raise ValueError(
            f"generator.classes: {path} generates {found.num_classes} classes, the data have "
            f"{expected.num_classes}; 'new' trains a class embedding for these, got "
            f"{section.classes!r}"
        )
    raise ValueError(f"{path} holds {found}, expected {expected}")


def check_tensors(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Check that tensors are all those that are expected, and no others.

    Raises:
        ValueError: tensors are missing, unknown, or of another shape; the message counts them and
            names the first of each kind.
    """
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


def _shape(tensors: Mapping[str, Tensor], name: str, dimensions: int) -> torch.Size:
    if name not in tensors:
        raise ValueError(f"{name} is missing")
    shape = tensors[name].shape
    if len(shape) != dimensions:
        raise ValueError(f"{name} has shape {tuple(shape)}, expected {dimensions} dimensions")
    return shape


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Count the blocks `prefix.0`, `prefix.1` and so on."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return len({found[1] for name in tensors if (found := pattern.match(name))})
