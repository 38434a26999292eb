"""What a generator with texts needs beside its tensors, kept in the file that is exported.

The released layout has classes alone, and settings stand in the code that reads it. So the file of
a generator with texts also says its sizes, how prompts become tokens, and how to sample.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field

from mar.config import Config
from mar.latents.posterior import LatentShape
from mar.model.conditions import TextShape
from mar.model.mar import MAR, GeneratorConfig
from mar.released.contents import read_description, read_generator, read_tokenizer
from mar.released.names import from_released
from mar.released.shapes import check_tensors
from mar.sampling.config import SampleConfig
from mar.text.registry import restore_encoder
from mar.tokenizers.interface import Tokenizer
from mar.tokenizers.registry import TokenizerConfig, build_tokenizer
from stages import params
from stages.prompts import fitting_encoder
from stages.weights import Weights


class Description(Config):
    """The entry `description` of a generator's file."""

    generator: GeneratorConfig = Field(description="its section")
    latent: dict[str, int] = Field(description="the shape of an image's latents")
    text: dict[str, Any] = Field(description="what the generator is given of a token of a text")
    encoder: dict[str, Any] = Field(description="what makes it: its section, and what it learnt")
    tokenizer: TokenizerConfig = Field(description="the section of the tokenizer")
    latent_std: float = Field(description="what latents are divided by")
    class_names: list[str] = Field(description="of the data: one for images without classes")
    sample: SampleConfig = Field(description="how to sample, where nobody says something else")


def describe(
    mar: MAR, tokenizer: Tokenizer, encoder: dict[str, Any], **others: Any
) -> dict[str, Any]:
    """Return what is written beside the tensors, as plain values.

    Args:
        mar: The generator.
        tokenizer: That of its latents.
        encoder: What the stage `encode_text` wrote of the encoder.
        others: The other fields of `Description`.
    """
    assert mar.text is not None
    fields = {
        "generator": mar.config,
        "latent": asdict(mar.latent),
        "text": asdict(mar.text),
        "encoder": encoder,
        "tokenizer": tokenizer.config,
        **others,
    }
    return Description.model_validate(fields).model_dump()


def exported_weights(generator: Path, tokenizer: Path, ema: bool) -> Weights | None:
    """Return the weights of exported files, or None where the generator's takes no texts.

    Args:
        generator: `checkpoint-last.pth`.
        tokenizer: `kl16.ckpt`.
        ema: The weights averaged over the training, or the last ones.

    The paths of a frozen text encoder begin in the present folder, if they are relative.

    Raises:
        ValueError: a file is missing or damaged, or they do not belong together.
    """
    found = read_description(generator)
    if found is None:
        return None
    section = params.parse("description", found, Description, generator)
    codec = build_tokenizer(section.tokenizer)
    text = TextShape(**section.text)
    mar = MAR(section.generator, LatentShape(**section.latent), len(section.class_names), text=text)
    which = "model_ema" if ema else "model"
    for path, model, tensors in (
        (tokenizer, codec, read_tokenizer(tokenizer, None).tensors),
        (generator, mar, from_released(read_generator(generator, None, which=which).tensors)),
    ):
        try:
            check_tensors(model.state_dict(), tensors)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        model.load_state_dict(tensors)
        model.requires_grad_(False).eval()
    encoder = fitting_encoder(restore_encoder(section.encoder, base=Path()), text, generator)
    return Weights(mar, codec, section.latent_std, section.class_names, section.sample, encoder)
