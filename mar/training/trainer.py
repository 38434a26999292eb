"""One optimiser step of any model: gradient accumulation, clipping, AdamW, EMA."""

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mar.config import Config
from mar.files import seal


M = TypeVar("M", bound=nn.Module)

History = list[dict[str, float | int]]  # points of curves: a step and the numbers measured at it
Average = Callable[[list[Tensor], list[Tensor], int | None], None]  # averages, values, unused
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


@dataclass(frozen=True)
class Step:
    """An optimiser step that was taken; `terms` are the named parts of the loss."""

    index: int
    loss: Float[Tensor, ""]
    terms: dict[str, Tensor]
    grad_norm: Float[Tensor, ""]
    lr: float

    def values(self) -> dict[str, float]:
        """Return the numbers for a curve.

        Raises:
            ValueError: the loss or the gradient is not finite.
        """
        numbers = {"loss": self.loss, **self.terms, "grad_norm": self.grad_norm}
        values = {name: float(value) for name, value in numbers.items()}
        for name, value in values.items():
            if not math.isfinite(value):
                raise ValueError(f"training diverged at step {self.index}: {name} is {value}")
        return {**values, "lr": self.lr}


@runtime_checkable
class Stateful(Protocol):
    """Something whose state a checkpoint can hold: a model, an optimiser."""

    def state_dict(self) -> dict[str, object]:
        """Return the state."""
        ...

    def load_state_dict(self, state_dict: dict[str, object], /) -> object:
        """Restore a state."""
        ...


class Trainer(Generic[M]):
    """A model in training, its averaged weights (EMA) and its optimiser.

    `step` counts the steps taken.
    """

    def __init__(self, model: M, groups: list[ParameterGroup], config: OptimisationConfig) -> None:
        self.model = model
        self.ema = copy.deepcopy(model).requires_grad_(False).eval()
        self.config = config
        self.optimizer = torch.optim.AdamW(
            groups, lr=config.lr, betas=(config.beta_1, config.beta_2), fused=True
        )
        self.average: Average = get_ema_multi_avg_fn(config.ema_decay)
        self.step = 0

    def update(self, losses: Iterable[tuple[Tensor, dict[str, Tensor]]]) -> Step:
        """Take one step on the sum of some losses, of which one at a time is in memory.

        Args:
            losses: For each part of the batch its loss and the terms it is made of, already
                weighted by the part's share of the batch.
        """
        lr = learning_rate(self.config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.model.train()
        self.optimizer.zero_grad()
        totals: dict[str, Tensor] = {}
        for loss, terms in losses:
            loss.backward()  # pyright: ignore[reportUnknownMemberType]
            for name, value in {"loss": loss, **terms}.items():
                totals[name] = totals.get(name, 0) + value.detach()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        self.optimizer.step()  # pyright: ignore[reportUnknownMemberType]
        self.average(list(self.ema.parameters()), list(self.model.parameters()), None)
        self.step += 1
        return Step(self.step, totals.pop("loss"), totals, norm, lr)

    def parts(self) -> dict[str, Stateful]:
        """Return everything whose state a checkpoint holds; subclasses add to it."""
        return {"model": self.model, "ema": self.ema, "optimizer": self.optimizer}

    def save(self, path: Path, history: History) -> None:
        """Write a checkpoint, and the curves up to here."""
        states = {name: part.state_dict() for name, part in self.parts().items()}
        with seal.sealing(path) as partial:
            torch.save({"step": self.step, "history": history, **states}, partial)
            seal.add_to_zip(partial)

    def load(self, path: Path) -> History:
        """Continue from what `save` wrote; return the curves up to there.

        Raises:
            DamagedFileError: the file is not what was written; nothing has changed.
        """
        seal.check(path)
        device = next(self.model.parameters()).device
        state = torch.load(path, map_location=device, weights_only=True)
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        self.step = state["step"]
        return state["history"]


def learning_rate(config: OptimisationConfig, step: int) -> float:
    """Return the learning rate of a step; steps count from 0."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.lr_schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    return config.lr * (1 + math.cos(math.pi * progress)) / 2


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
