"""Which heads there are: a line for each, and its two sections of `params.yaml`."""

from typing import Annotated, NamedTuple

from pydantic import Field

from mar.config import Config
from mar.cross_entropy import CrossEntropy, CrossEntropyConfig, CrossEntropySampler
from mar.diffusion_loss import DiffusionConfig, DiffusionLoss, DiffusionSampler
from mar.flow import FlowConfig, FlowSampler, RectifiedFlow
from mar.head import Head
from mar.l2 import L2, L2Config, L2Sampler


class Kind(NamedTuple):
    """A kind of head.

    Attributes:
        head: Made from a config, the channels of a token (or the number of codes) and z's width.
        config: Section `generator.head`.
        sampler: Section `sample.head`.
        indices: Whether a token is an index into a codebook.
    """

    head: type[Head]
    config: type[Config]
    sampler: type[Config]
    indices: bool


HEADS = {
    "diffusion": Kind(DiffusionLoss, DiffusionConfig, DiffusionSampler, indices=False),
    "flow": Kind(RectifiedFlow, FlowConfig, FlowSampler, indices=False),
    "l2": Kind(L2, L2Config, L2Sampler, indices=False),
    "cross_entropy": Kind(CrossEntropy, CrossEntropyConfig, CrossEntropySampler, indices=True),
}
HeadConfig = Annotated[
    DiffusionConfig | FlowConfig | L2Config | CrossEntropyConfig, Field(discriminator="kind")
]
SamplerConfig = Annotated[
    DiffusionSampler | FlowSampler | L2Sampler | CrossEntropySampler, Field(discriminator="kind")
]
