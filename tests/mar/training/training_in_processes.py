"""A tiny training of the generator, as each of several processes runs it."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tiny_generator import FIELDS
from torch import Tensor

from mar import distributed
from mar.distributed import Parallel
from mar.latents.cache import LatentCache, write_latents
from mar.latents.info import LatentsInfo
from mar.latents.posterior import LatentShape
from mar.model.mar import MAR, GeneratorConfig
from mar.training.checkpoints import Checkpoints
from mar.training.generator import TrainingConfig, new_trainer, train


SHAPE = LatentShape(channels=2, height=4, width=4)
COUNT = 8
TRAINING = {
    "seed": 0,
    "steps": 4,
    "batch_size": 8,
    "lr": 0.01,
    "lr_schedule": "constant",
    "warmup_steps": 2,
    "beta_1": 0.9,
    "beta_2": 0.95,
    "weight_decay": 0.02,
    "gradient_clip": 0.5,
    "ema_decay": 0.9,
    "averages": {"widths": [0.1], "snapshots": 2, "dtype": "float32"},
    "curve_steps": 1,
    "preview_steps": 1,
}


class Outcome(NamedTuple):
    """What a training came to: its losses, gradient norms, raw and averaged weights."""

    losses: list[float]
    norms: list[float]
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    average: dict[str, Tensor]


def write_cache(folder: Path) -> None:
    """Write the cached latents of eight random images."""
    rng = torch.Generator().manual_seed(4)
    moments = torch.randn(COUNT, 2 * SHAPE.channels, 4, 4, generator=rng)
    names = [str(index) for index in range(COUNT)]
    path = folder / "latents" / "0.arrow"
    write_latents(path, moments, None, labels=torch.arange(COUNT), names=names, dtype="float32")


def open_cache(folder: Path, shape: LatentShape = SHAPE) -> LatentCache:
    """Open the cached latents of eight images of a class each."""
    info = LatentsInfo(
        tokenizer="",
        transform="",
        dtype="float32",
        flips=False,
        count=COUNT,
        num_classes=COUNT,
        class_counts=[],
        codebook_size=None,
        shape=[shape.channels, shape.height, shape.width],
        latent_std=1.0,
        largest=None,
        mean=0.0,
        std=1.0,
        channel_mean=[],
        channel_std=[],
    )
    return LatentCache(folder, info)


def run(
    folder: Path, parallel: Parallel, steps: int, head: dict[str, Any] | None = None
) -> Outcome | None:
    """Take the steps that are left, save, and return what came of it, in the main process."""
    fields = {**FIELDS, "patch_size": 1, **({"head": head} if head else {})}
    model = MAR(GeneratorConfig.model_validate(fields), SHAPE, COUNT)
    config = TrainingConfig.model_validate({**TRAINING, "steps": steps})
    trainer = new_trainer(model, config, parallel=parallel)
    checkpoints = Checkpoints(folder / "checkpoints")
    for path in checkpoints.paths()[:1]:
        trainer.load(checkpoints, path)
    # Parts of two samples each, whatever the number of processes: dropout is drawn for each part.
    taken = list(
        train(trainer, open_cache(folder / "latents"), config, micro_batch=2, autocast=nullcontext)
    )
    trainer.save(checkpoints, [])
    checkpoints.wait()
    distributed.barrier()
    states: list[dict[str, Tensor]] = []
    for whole in (trainer.whole_model, trainer.whole_ema, lambda: trainer.whole_average(0.1)):
        if (found := whole()) is not None:
            states.append({name: value.clone() for name, value in found.state_dict().items()})
    if not states:
        return None
    losses = [float(step.loss) for step in taken]
    return Outcome(losses, [float(step.grad_norm) for step in taken], *states)
