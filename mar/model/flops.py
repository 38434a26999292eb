"""Floating-point operations of a training step, and the share of a GPU's peak that they reach.

A multiplication and an addition count as two, and only matrix products count. What activation
checkpointing computes again does not count: this is the model FLOPs utilisation (MFU) of PaLM
(arXiv 2204.02311, appendix B).
"""
# The counter has few types:
# pyright: reportUnknownMemberType=false

import math
import re
from functools import lru_cache
from statistics import NormalDist

import torch
from torch.utils.flop_counter import FlopCounterMode

from mar import distributed
from mar.model.mar import MAR, MaskRatio, TrainingDraws


PEAKS = {  # dense bfloat16 FLOP/s with float32 sums, from the data sheets; first match counts
    "GB200": 2500e12,
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "GH200": 989e12,
    "A100": 312e12,
    "A40": 149.7e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}


def step_flops(model: MAR, batch_size: int, num_hidden: int | None = None) -> int:
    """Return the operations of the forward and backward pass of a batch.

    They are counted on a copy without memory, so this takes no notice of a device, of compilation
    or of sharding.

    Args:
        model: The model.
        batch_size: Samples of the batch.
        num_hidden: Hidden tokens of each sample; by default as many as there are on average.
    """
    if num_hidden is None:
        num_hidden = round(mean_hidden(model.config.mask_ratio, model.num_tokens))
    with torch.device("meta"):
        sizes = (model.latent, model.num_classes, model.codebook_size)
        twin = MAR(model.config, *sizes, text=model.text)
        channels = 1 if model.config.is_discrete else model.latent.channels
        dtype = torch.int64 if model.config.is_discrete else torch.float32
        shape = (batch_size, channels, model.latent.height, model.latent.width)
        latents, given = (
            torch.empty(shape, dtype=dtype),
            twin.transformer.condition.nothing(batch_size),
        )
        orders = torch.empty(batch_size, model.num_tokens, dtype=torch.long)
        dropped = torch.empty(batch_size, dtype=torch.bool)
    one = twin.head.draw(1, num_hidden, torch.Generator())
    head = tuple(draw.to("meta").expand(batch_size, *draw.shape[1:]) for draw in one)
    with FlopCounterMode(display=False) as counter:
        twin.train()(latents, given, TrainingDraws(orders, num_hidden, dropped, head)).backward()
    return counter.get_total_flops()


def mean_hidden(ratio: MaskRatio | None, num_tokens: int) -> float:
    """Return how many tokens are hidden on average (MAR, section 4.1); all without masking."""
    if ratio is None:
        return float(num_tokens)
    normal = NormalDist(1.0, ratio.std)
    lowest = normal.cdf(ratio.min)
    # The sum over k of P(at least k are hidden), which is P(mask ratio > (k - 1) / N).
    above = (
        (0.5 - normal.cdf(max(ratio.min, k / num_tokens))) / (0.5 - lowest)
        for k in range(num_tokens)
    )
    return math.fsum(above) if ratio.min < 1 else float(num_tokens)


def peak_flops(device: torch.device) -> float | None:
    """Return a GPU's peak of bfloat16 operations per second; None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if re.search(rf"\b{part}\b", name)), None)


def mfu(
    model: MAR, batch_size: int, images_per_second: float, device: torch.device
) -> float | None:
    """Return the share of their peak that all GPUs reach together; None where it is not known.

    Args:
        model: What is trained, on one GPU for each process.
        batch_size: Samples of a whole batch.
        images_per_second: How many all of them take together.
        device: A GPU.
    """
    peak = peak_flops(device)
    if peak is None:
        return None
    flops_per_image = _step_flops(model, batch_size) / batch_size
    return flops_per_image * images_per_second / (peak * distributed.num_processes())


@lru_cache(maxsize=1)
def _step_flops(model: MAR, batch_size: int) -> int:
    return step_flops(model, batch_size)
