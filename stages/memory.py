"""Whether a stage's memory could suffice: the least that it takes, before anything is allocated.

The sums hold what cannot be spared: weights with all that training keeps of them, a batch, one
hidden state for each block and image in flight. So nothing is refused that would run, and what is a
thousand times too large ends in a sentence instead of filling the machine.
"""

import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mar import distributed
from mar.evaluation.classifier_extractor import ClassifierReference
from mar.evaluation.extractor_registry import ReferenceConfig
from mar.model.mar import MAR
from mar.released.generator import GeneratorSource
from mar.released.tokenizer import TokenizerSource
from mar.sampling.config import SampleConfig
from mar.tokenizer_training.trainer import TokenizerTrainingConfig
from mar.tokenizers.registry import build_tokenizer, latent_shape
from mar.training.generator import TrainingConfig
from stages import params
from stages.stage import read_count


FLOAT, HALF = 4, 2  # bytes
TRAINED = 5  # copies of each weight: itself, its average, its gradient and two of AdamW
CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")

Needs = dict[str, int]  # bytes, by what takes them


def check(stage: str, device: torch.device) -> None:
    """Refuse a stage whose sizes cannot fit into the memory of its device.

    Raises:
        ValueError: the message says what takes most, and what there is.
    """
    if stage not in NEEDS:
        return
    needs, there_is = NEEDS[stage](), available(device)
    total = sum(needs.values())
    if total > there_is:
        largest = sorted(needs, key=lambda name: -needs[name])
        parts = ", ".join(f"{name} {_gigabytes(needs[name])}" for name in largest)
        raise ValueError(
            f"{params.FILE}: {stage} takes {_gigabytes(total)} of memory at the very least "
            f"({parts}), and {device} has {_gigabytes(there_is)}"
        )


def available(device: torch.device) -> int:
    """Return the bytes of memory that there are on a device for this process, in use or not."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    limits += [int(text) for path in CGROUPS if (text := _read(Path(path))).isdecimal()]
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    return min([*limits, *([allowed] if allowed != resource.RLIM_INFINITY else [])])


def _train_tokenizer() -> Needs:
    tokenizer = params.load("tokenizer", TokenizerSource)
    config = params.load("tokenizer_training", TokenizerTrainingConfig)
    pixels = 3 * params.load("data.image_size", int) ** 2
    with torch.device("meta"):
        model = build_tokenizer(tokenizer)
    if not config.steps:
        return {"tokenizer": 2 * FLOAT * _count(model)}
    in_flight = min(config.batch_size, _micro_batch())
    return {
        "tokenizer": TRAINED * FLOAT * _count(model),
        "tokenizer_training.batch_size": config.batch_size * pixels,
        "data.image_size": 2 * FLOAT * in_flight * pixels,
    }


def _reference() -> Needs:
    config = params.load("reference", ReferenceConfig)
    if not isinstance(config, ClassifierReference):
        return {}
    classifier = config.classifier
    area = params.load("data.image_size", int) ** 2
    # Of each block a kernel from its width to the next; at full resolution, one hidden state.
    return {
        "reference.classifier.width": 3 * FLOAT * 9 * classifier.width**2,
        "reference.classifier.batch_size": classifier.batch_size
        * area
        * (3 + FLOAT * (3 + classifier.width)),
        "reference.classifier.feature_width": 2 * 8 * classifier.feature_width**2,
    }


def _train_generator() -> Needs:
    section = params.load("generator", GeneratorSource)
    config = params.load("training", TrainingConfig)
    model, moments = _generator()
    if not config.steps:
        return {"generator": 2 * FLOAT * _count(model)}
    widths = section.widths
    averages = len(config.averages.widths) if config.averages else 0
    in_flight = min(config.batch_size, _micro_batch())
    return {
        "generator": (TRAINED + averages) * FLOAT * _count(model) // _spread(),
        "training.batch_size": 2 * FLOAT * config.batch_size * moments,
        "data.image_size and generator.condition_tokens": HALF
        * in_flight
        * (model.num_tokens + section.condition_tokens)
        * widths.decoder_width
        * widths.decoder_blocks,
    }


def _spread() -> int:
    """Return over how many processes the weights in training are spread."""
    is_spread = os.environ.get("MAR_PARALLEL") == "fsdp"
    return distributed.num_processes() if is_spread else 1


def _encode() -> Needs:
    with torch.device("meta"):
        model = build_tokenizer(params.load("tokenizer", TokenizerSource))
    pixels = 3 * params.load("data.image_size", int) ** 2
    return {"tokenizer": FLOAT * _count(model), "data.image_size": (1 + FLOAT) * pixels}


def _sample() -> Needs:
    config = params.load("sample", SampleConfig)
    model, _ = _generator()
    pixels = 3 * params.load("data.image_size", int) ** 2
    shard = min(config.num_images, config.shard_images)
    in_flight = min(shard, read_count("MAR_SAMPLE_BATCH", 256, least=1))
    later = config.num_steps - 1 if config.order == "confidence" else 0
    noise = (1 + config.head.num_noises + later) * model.num_tokens * model.channels
    return {
        "generator": FLOAT * _count(model),
        "sample.num_images": 2 * 8 * config.num_images,  # their labels
        "sample.shard_images": shard * pixels,
        "noise (MAR_SAMPLE_BATCH, sample.num_steps, sample.head.num_steps)": FLOAT
        * in_flight
        * noise,
    }


NEEDS: dict[str, Callable[[], Needs]] = {
    "reference": _reference,
    "train_tokenizer": _train_tokenizer,
    "reconstruct": _encode,
    "encode": _encode,
    "train_generator": _train_generator,
    "sample": _sample,
}


def _generator() -> tuple[MAR, int]:
    """Return a generator without numbers in it, and how many moments an image has."""
    section: Any = params.load("tokenizer", TokenizerSource)
    latent = latent_shape(section, params.load("data.image_size", int))
    with torch.device("meta"):
        tokenizer = build_tokenizer(section)
        model = MAR(params.load("generator", GeneratorSource), latent, 1, tokenizer.codebook_size)
    return model, latent.channels * latent.height * latent.width


def _micro_batch() -> int:
    return read_count("MAR_MICRO_BATCH", 256, least=1)


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.3g} GB" if size < 1e12 else f"{size / 1e9:,.0f} GB"


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
