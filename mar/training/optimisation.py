"""How models are optimised: AdamW's settings and parameter groups, and the learning rate."""

import math
from collections.abc import Iterable
from typing import Literal

from pydantic import Field
from torch import nn

from mar.config import Config


MOST_INITIAL = 0.01  # of averaged weights, without a warning; ours

ParameterGroup = dict[str, list[nn.Parameter] | float]  # as torch's optimisers take them


class OptimisationConfig(Config):
    """What the trainings of tokenizer and generator share: length, optimiser, EMA, curves."""

    seed: int = Field(ge=0, description="seed of initial weights, batches and noise")
    steps: int = Field(ge=0, description="optimiser steps; 0 to use released weights as they are")
    batch_size: int = Field(gt=0, description="images in an optimiser step, over all processes")
    lr: float = Field(gt=0, description="learning rate after the warm-up")
    lr_schedule: Literal["constant", "cosine"] = Field(
        description="learning rate after the warm-up: constant, or falling to 0 along a cosine"
    )
    warmup_steps: int = Field(ge=0, description="optimiser steps of linear warm-up")
    beta_1: float = Field(ge=0, lt=1, description="AdamW: decay of the gradients' mean")
    beta_2: float = Field(ge=0, lt=1, description="AdamW: decay of the gradients' mean square")
    weight_decay: float = Field(ge=0, description="AdamW: decay of weight matrices")
    gradient_clip: float = Field(gt=0, description="largest norm of the gradient")
    ema_decay: float = Field(
        ge=0, lt=1, description="decay of the averaged weights (EMA), per step"
    )
    curve_steps: int = Field(gt=0, description="optimiser steps between points of the curves")
    preview_steps: int = Field(gt=0, description="optimiser steps between pictures")


def learning_rate(config: OptimisationConfig, step: int) -> float:
    """Return the learning rate of a step; steps count from 0."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.lr_schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    return config.lr * (1 + math.cos(math.pi * progress)) / 2


def long_average_warning(key: str, config: OptimisationConfig) -> str | None:
    """Return a warning if averaged weights would largely be the initial ones, else None."""
    share = config.ema_decay**config.steps
    if not config.steps or share < MOST_INITIAL:
        return None
    return (
        f"{key} {config.ema_decay} is long for {config.steps} steps: {100 * share:.0f} % of the "
        "averaged weights will be the weights that the training begins with; with "
        f"{MOST_INITIAL ** (1 / config.steps):.4g} they are {100 * MOST_INITIAL:.0f} %"
    )


def parameter_groups(
    model: nn.Module, weight_decay: float, *, without_decay: Iterable[nn.Parameter] = ()
) -> list[ParameterGroup]:
    """Split parameters into those that decay (two dimensions or more) and those that do not."""
    exempt = {id(parameter) for parameter in without_decay}
    decayed = [p for p in model.parameters() if p.ndim >= 2 and id(p) not in exempt]
    chosen = {id(parameter) for parameter in decayed}
    others = [p for p in model.parameters() if id(p) not in chosen]
    assert len(decayed) + len(others) == len(list(model.parameters()))
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
