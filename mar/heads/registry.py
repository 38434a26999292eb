"""All heads, one line each."""

from typing import Annotated, NamedTuple

from mar.config import Config, choice
from mar.heads.base import Head, HeadSection, SamplerSection
from mar.heads.cross_entropy import CrossEntropy, CrossEntropyConfig, CrossEntropySampler
from mar.heads.diffusion_loss import DiffusionConfig, DiffusionLoss, DiffusionSampler
from mar.heads.energy import EnergyConfig, EnergyHead, EnergySampler
from mar.heads.flow import FlowConfig, FlowSampler, RectifiedFlow
from mar.heads.l2 import L2, L2Config, L2Sampler
from mar.heads.meanflow import MeanFlow, MeanFlowConfig, MeanFlowSampler


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
    "meanflow": Kind(MeanFlow, MeanFlowConfig, MeanFlowSampler),
    "energy": Kind(EnergyHead, EnergyConfig, EnergySampler),
    "l2": Kind(L2, L2Config, L2Sampler),
    "cross_entropy": Kind(CrossEntropy, CrossEntropyConfig, CrossEntropySampler),
}


HeadConfig = Annotated[HeadSection, choice({name: HEADS[name].config for name in HEADS})]
SamplerConfig = Annotated[SamplerSection, choice({name: HEADS[name].sampler for name in HEADS})]
