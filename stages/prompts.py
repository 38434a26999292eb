"""The prompts that images are generated from, as section `sample` names them.

Shapes: B images, K tokens of a prompt.
"""

from pathlib import Path
from typing import NamedTuple

from jaxtyping import Shaped
from torch import Tensor

from mar.sampling.config import SampleConfig
from mar.text.cache import TextCache
from mar.text.prompts import check_prompts, find_prompts
from mar.text.registry import load_encoder


class Prompts(NamedTuple):
    """The prompts of some images.

    Attributes:
        texts: The prompt of each image.
        given: Its tokens, as the generator takes them.
        geneval: The line of GenEval's file that each is from, if they are from one.
        remarks: What of them the generator will not heed.
    """

    texts: list[str]
    given: Shaped[Tensor, "B K"]
    geneval: list[str] | None
    remarks: list[str]


def load(
    config: SampleConfig, num_images: int, count: int, encoder: Path, texts: Path, *, base: Path
) -> Prompts:
    """Cycle through the prompts, so that each has equally many images, to within one.

    Args:
        config: Section `sample`.
        num_images: How many images are wanted.
        count: How many tokens of a prompt the generator takes.
        encoder: What `encode_text` wrote of the encoder.
        texts: What it wrote of the captions.
        base: Where the path of a file of prompts begins, if it is relative.

    Raises:
        ValueError: there are no prompts, nothing is left of one, or there is no encoder.
    """
    found = load_encoder(encoder)
    if found is None:
        raise ValueError(f"{encoder} is that of a project without texts; the generator takes texts")
    asked = find_prompts(config.prompts, TextCache(texts, count).held_out, base=base)
    prompts = [prompt.text for prompt in asked]
    try:
        remarks = check_prompts(prompts, found, count)
    except ValueError as error:
        raise ValueError(f"sample.prompts: {error}") from None
    if config.prompts is not None and num_images % len(prompts):
        remarks.append(
            f"{num_images} images of {len(prompts)} prompts: not all prompts have equally many"
        )
    order = [index % len(prompts) for index in range(num_images)]
    lines = [prompt.geneval for prompt in asked if prompt.geneval is not None]
    return Prompts(
        [prompts[index] for index in order],
        found.encode(prompts, count)[order],
        [lines[index] for index in order] if lines else None,
        remarks,
    )
