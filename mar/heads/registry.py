"""All heads, one line each."""

from collections.abc import Mapping
from typing import Annotated, NamedTuple

from pydantic import GetCoreSchemaHandler, GetPydanticSchema
from pydantic_core import CoreSchema, core_schema

from mar.config import Config
from mar.heads.base import Head, HeadSection, SamplerSection
from mar.heads.cross_entropy import CrossEntropy, CrossEntropyConfig, CrossEntropySampler
from mar.heads.diffusion_loss import DiffusionConfig, DiffusionLoss, DiffusionSampler
from mar.heads.flow import FlowConfig, FlowSampler, RectifiedFlow
from mar.heads.l2 import L2, L2Config, L2Sampler


class Kind(NamedTuple):
    """A kind of head.

    Attributes:
        head: The class; made from a config, the channels of a token (or number of codes) and the
            width of z.
        config: Section `generator.head`.
        sampler: Section `sample.head`.
    """

    head: type[Head]
    config: type[Config]
    sampler: type[Config]


HEADS = {
    "diffusion": Kind(DiffusionLoss, DiffusionConfig, DiffusionSampler),
    "flow": Kind(RectifiedFlow, FlowConfig, FlowSampler),
    "l2": Kind(L2, L2Config, L2Sampler),
    "cross_entropy": Kind(CrossEntropy, CrossEntropyConfig, CrossEntropySampler),
}


def choice(sections: Mapping[str, type[Config]]) -> GetPydanticSchema:
    """Return a type by which pydantic reads one of several sections, told apart by `kind`."""

    def schema(_: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {name: handler.generate_schema(section) for name, section in sections.items()}
        return core_schema.tagged_union_schema(choices, discriminator="kind")

    return GetPydanticSchema(schema)


HeadConfig = Annotated[HeadSection, choice({name: HEADS[name].config for name in HEADS})]
SamplerConfig = Annotated[SamplerSection, choice({name: HEADS[name].sampler for name in HEADS})]
