"""The prompts that images are generated from, as section `sample` names them.

Shapes: B images, K tokens of a prompt.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from mar.model.conditions import TextShape
from mar.model.mar import MAR
from mar.sampling.config import DrawnPrompts, SampleConfig
from mar.seeds import make_rng
from mar.text.cache import Captions
from mar.text.encoder import TextEncoder
from mar.text.prompts import Prompt, check_prompts, find_prompts, keep_known, tidy
from mar.text.registry import load_encoder


@dataclass(frozen=True)
class Prompts:
    """The prompts of some images.

    Attributes:
        texts: The prompt of each image.
        geneval: The line of GenEval's file that each is from, if they are from one.
        sources: The image whose caption each is, if they were drawn.
        remarks: What of them the generator will not heed.
        encoder: Makes their tokens.
        count: How many of them the generator takes.
    """

    texts: list[str]
    geneval: list[str] | None
    sources: list[str] | None
    remarks: list[str]
    encoder: TextEncoder
    count: int

    def given(self, indices: Int[Tensor, " B"]) -> Shaped[Tensor, "B K ..."]:
        """Return the prompts of some images as the generator takes them; each is encoded once."""
        texts = [self.texts[index] for index in indices.tolist()]
        places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        return self.encoder.encode(list(places), self.count)[[places[text] for text in texts]]

    def columns(self, indices: Int[Tensor, " B"]) -> dict[str, list[str]]:
        """Return what is written beside some images, by the names that `write_shard` has."""
        columns = {"prompts": self.texts, "geneval": self.geneval, "sources": self.sources}
        return {
            name: [column[index] for index in indices.tolist()]
            for name, column in columns.items()
            if column is not None
        }

    def digest(self) -> str:
        """Return the SHA-256 of what is written beside all images: other prompts, another one."""
        columns = self.columns(torch.arange(len(self.texts)))
        return hashlib.sha256(json.dumps(columns, sort_keys=True).encode()).hexdigest()


def load(
    config: SampleConfig,
    num_images: int,
    model: MAR,
    encoder: Path,
    texts: Path,
    *,
    base: Path,
    device: torch.device,
) -> Prompts:
    """Cycle through the prompts, so that each has equally many images, to within one.

    Of captions of held-out images, those of which nothing is known are left out; of prompts that
    a person wrote, they are refused.

    Args:
        config: Section `sample`.
        num_images: How many images are wanted.
        model: The generator, which takes texts.
        encoder: What `encode_text` wrote of the encoder.
        texts: What it wrote of the captions.
        base: Where the paths of encoder and prompts begin, if they are relative.
        device: Where prompts are encoded.

    Raises:
        ValueError: there are no prompts, nothing is left of one, or the generator was trained with
            another encoder.
    """
    assert model.text is not None
    found = open_encoder(encoder, model.text, base=base).to(device)
    asked = _find(config, texts, base)
    remarks: list[str] = []
    looked_at = asked
    if not isinstance(config.prompts, str | list):
        asked, remarks = keep_known(asked, found, num_images)
        looked_at = asked[:num_images]
    count = model.config.condition_tokens
    try:
        remarks += check_prompts(looked_at, found, count)
    except ValueError as error:
        raise ValueError(f"sample.prompts: {error}") from None
    if config.prompts is not None and num_images % len(asked):
        remarks.append(
            f"{num_images} images of {len(asked)} prompts: not all prompts have equally many"
        )
    each = list(islice(cycle(asked), num_images))
    lines = [prompt.geneval for prompt in each if prompt.geneval is not None]
    sources = [prompt.source for prompt in each if prompt.source is not None]
    texts_of_images = [prompt.text for prompt in each]
    return Prompts(texts_of_images, lines or None, sources or None, remarks, found, count)


def _find(config: SampleConfig, texts: Path, base: Path) -> list[Prompt]:
    """Return the prompts that key `sample.prompts` names.

    Raises:
        ValueError: they cannot be read, or there are not as many captions.
    """
    if not isinstance(config.prompts, DrawnPrompts):
        held_out = Captions(texts).held_out() if config.prompts is None else []
        return find_prompts(config.prompts, held_out, base=base)
    rng = make_rng("prompts", config.prompts.seed)
    try:
        drawn, names = Captions(texts).draw_held_out(config.prompts.held_out, rng)
    except ValueError as error:
        raise ValueError(f"sample.prompts.held_out: {error}") from None
    return [Prompt(tidy(text), source=name) for text, name in zip(drawn, names, strict=True)]


def open_encoder(path: Path, expected: TextShape, *, base: Path) -> TextEncoder:
    """Return what makes tokens of texts for a generator.

    Args:
        path: What `encode_text` wrote of it.
        expected: What the generator takes.
        base: Where the paths of section `text` begin, if they are relative.

    Raises:
        ValueError: there is none, or the generator was trained with another one.
    """
    return fitting_encoder(load_encoder(path, base=base), expected, path)


def fitting_encoder(encoder: TextEncoder | None, expected: TextShape, path: Path) -> TextEncoder:
    """Return an encoder of a file if it is what a generator expects.

    Raises:
        ValueError: there is none, or the generator was trained with another one.
    """
    found = encoder and TextShape(encoder.token_kind, encoder.size, encoder.identity)
    if found is not None and expected.encoder is None:  # a file from before it was noted
        found = replace(found, encoder=None)
    if encoder is None or found != expected:
        raise ValueError(f"{path} holds {found or 'no encoder'}, the generator takes {expected}; "
                         "`dvc repro train_generator` trains it on these texts")  # fmt: skip
    return encoder
