"""One optimiser step of any model: gradient accumulation, clipping, AdamW, EMA."""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mar import distributed
from mar.averaging import power
from mar.config import Config
from mar.distributed import Parallel
from mar.training import parallelism
from mar.training.checkpoints import Checkpoints, History, Stateful
from mar.training.parallelism import local_tensor, whole_tensor


M = TypeVar("M", bound=nn.Module)

MOST_INITIAL = 0.01  # of averaged weights, without a warning; ours
MAX_SKIPPED = 10  # steps in a row without a finite gradient; ours

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
    """An optimiser step that was taken.

    Attributes:
        index: Its number, from 1.
        loss: The loss of the batch.
        terms: The named parts of the loss.
        grad_norm: The norm of the gradient.
        lr: The learning rate.
        in_a_row: Steps up to this one, without a break, that were skipped because loss or gradient
            was not finite.
        longest: The most steps in a row that were skipped so far.
        skipped: All steps that were skipped so far.
        max_in_a_row: From how many in a row on the training has diverged.
    """

    index: int
    loss: Float[Tensor, ""]
    terms: dict[str, Tensor]
    grad_norm: Float[Tensor, ""]
    lr: float
    in_a_row: Float[Tensor, ""]
    longest: Float[Tensor, ""]
    skipped: Float[Tensor, ""]
    max_in_a_row: int

    def values(self) -> dict[str, float]:
        """Return the numbers for a curve, those that are finite; this waits for the device.

        Raises:
            DivergedError: too many steps in a row were skipped.
        """
        numbers = {"loss": self.loss, **self.terms, "grad_norm": self.grad_norm}
        values = {name: float(value) for name, value in numbers.items()}
        broken = {name: value for name, value in values.items() if not math.isfinite(value)}
        longest, skipped = int(self.longest), int(self.skipped)
        if longest >= self.max_in_a_row:
            found = " and ".join(f"{name} is {value}" for name, value in broken.items())
            what = found or "loss or gradient was not finite"
            raise DivergedError(
                f"training diverged at step {self.index}: {what}, in {longest} steps in a row"
            )
        finite = {name: value for name, value in values.items() if name not in broken}
        return {**finite, "lr": self.lr, **({"skipped_steps": skipped} if skipped else {})}

    @property
    def is_skipped(self) -> bool:
        """Whether loss or gradient was not finite; this waits for the device."""
        return int(self.in_a_row) > 0


class DivergedError(ValueError):
    """The loss or its gradient is not finite any more."""


class Trainer(Generic[M]):
    """A model in training, its averaged weights (EMA) and its optimiser.

    In several processes, each adds its share of a batch, and all take the same step.

    Attributes:
        model: The model.
        network: What computes the loss: the model, or what wraps it for several processes.
        ema: The averaged weights.
        averages: Further averages, by a power of the step, by their relative widths.
        optimizer: AdamW.
        step: The number of steps taken.
    """

    def __init__(
        self,
        model: M,
        group: Callable[[M], list[ParameterGroup]],
        config: OptimisationConfig,
        parallel: Parallel | Literal["none"] = "none",
        widths: Sequence[float] = (),
    ) -> None:
        """Begin the average with the model's weights, and divide both among the processes.

        Args:
            model: What is trained, with its initial weights.
            group: Returns the groups of parameters that the optimiser takes.
            config: How to train.
            parallel: How processes work together ("none": gradients are added up after the
                backward pass).
            widths: Of further averages (`mar.averaging`); each takes as much memory as the model.
        """
        self.ema = copy.deepcopy(model).requires_grad_(False).eval()
        self.model = model
        self.averages = {width: copy.deepcopy(self.ema) for width in widths}
        self.processes = parallelism.divide(model, [self.ema, *self.averages.values()], parallel)
        self.network = self.processes.network
        self.config = config
        self.optimizer = torch.optim.AdamW(
            group(model), lr=config.lr, betas=(config.beta_1, config.beta_2), fused=True
        )
        self.average: Average = get_ema_multi_avg_fn(config.ema_decay)
        self.step = 0
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self._counts = _Counts().to(device)

    def accumulate(self, *, last: bool) -> AbstractContextManager[object]:
        """Return the context of forward and backward pass of a part of a batch.

        Args:
            last: Whether it is the last part of this process's share, after which the gradients of
                all processes are added up.
        """
        return self.processes.accumulate(last)

    def update(self, losses: Iterable[tuple[Tensor, dict[str, Tensor]]]) -> Step:
        """Take one step on the sum of some losses, of which one at a time is in memory.

        If loss or gradient is not finite, weights and moments stay as they are, and the step counts
        as skipped. The device decides that, so nothing waits for it.

        Args:
            losses: For each part of this process's share its loss and the terms it is made of,
                already weighted by the part's share of the whole batch.
        """
        lr = learning_rate(self.config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.model.train()
        self.optimizer.zero_grad()
        totals: dict[str, Tensor] = {}
        for loss, terms in losses:
            (loss * self.processes.factor).backward()  # pyright: ignore[reportUnknownMemberType]
            for name, value in {"loss": loss, **terms}.items():
                totals[name] = totals.get(name, 0) + value.detach()
        if distributed.is_distributed():
            whole = distributed.add_up(torch.stack(list(totals.values())))
            totals = dict(zip(totals, whole.unbind(), strict=True))
            self.add_up_gradients()
        norm = whole_tensor(
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        )
        broken = (~(norm.isfinite() & totals["loss"].isfinite())).float()
        counts = self._counts
        counts.skipped = counts.skipped + broken
        counts.in_a_row = (counts.in_a_row + 1) * broken
        counts.longest = torch.maximum(counts.longest, counts.in_a_row)
        self.optimizer.found_inf = broken  # pyright: ignore[reportAttributeAccessIssue]
        self.optimizer.step()  # pyright: ignore[reportUnknownMemberType]
        self.average(
            [local_tensor(p) for p in self.ema.parameters()],
            [local_tensor(p) for p in self.model.parameters()],
            None,
        )
        self.step += 1
        self._average_by_powers()
        loss = totals.pop("loss")
        limit = min(MAX_SKIPPED, self.config.steps)
        return Step(
            self.step,
            loss,
            totals,
            norm,
            lr,
            counts.in_a_row,
            counts.longest,
            counts.skipped,
            limit,
        )

    def _average_by_powers(self) -> None:
        """Bring the further averages up to the step just taken."""
        for width, average in self.averages.items():
            get_ema_multi_avg_fn(power.decay(width, self.step))(
                [local_tensor(p) for p in average.parameters()],
                [local_tensor(p) for p in self.model.parameters()],
                None,
            )

    def add_up_gradients(self) -> None:
        """Make each gradient the sum over all processes, if the backward pass has not done so."""
        self.processes.add_up_gradients()

    def parts(self) -> dict[str, Stateful]:
        """Return everything whose state a checkpoint holds; subclasses add to it."""
        return {
            "model": self.model,
            "ema": self.ema,
            "optimizer": OptimizerState(self.optimizer),
            "counts": self._counts,
            **{f"average_{index}": each for index, each in enumerate(self.averages.values())},
        }

    def save(self, checkpoints: Checkpoints, history: History) -> None:
        """Begin to write a checkpoint, with the curves up to here.

        Raises:
            OSError: an earlier one could not be written.
        """
        # What each process has as a whole is copied, and written, by the main one.
        mine = self.processes.is_spread or distributed.is_main()
        checkpoints.save(self.parts() if mine else {}, self.step, history)

    def load(self, checkpoints: Checkpoints, path: Path) -> History:
        """Continue from a checkpoint; return the curves up to there.

        Raises:
            DamagedFileError: it is not what was written; nothing has changed.
        """
        loaded = checkpoints.load(path, self.parts())
        self.step = loaded.step
        return loaded.history

    def whole_model(self) -> M | None:
        """Return the model with all of its weights, in the main process; None in others.

        All processes must call it. If weights are spread over processes, it is one object that the
        next call, of `whole_ema` too, overwrites.
        """
        return self.processes.whole(self.model)

    def whole_ema(self) -> M | None:
        """Return the averaged weights, as `whole_model` does."""
        return self.processes.whole(self.ema)

    def whole_average(self, width: float) -> M | None:
        """Return the further average of a relative width, as `whole_model` does."""
        return self.processes.whole(self.averages[width])


class _Counts(nn.Module):
    """How many steps were skipped."""

    skipped: Float[Tensor, ""]
    in_a_row: Float[Tensor, ""]
    longest: Float[Tensor, ""]

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("longest", torch.zeros(()))
        self.register_buffer("skipped", torch.zeros(()))
        self.register_buffer("in_a_row", torch.zeros(()))


class OptimizerState:
    """What AdamW remembers, under names that do not depend on the number of processes."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer

    def state_dict(self) -> dict[str, Tensor]:
        """Return the moments of each parameter, zero for one that has had no step."""
        states: dict[str, Tensor] = {}
        groups = self._optimizer.param_groups
        for index, parameter in enumerate(p for group in groups for p in group["params"]):
            state = self._optimizer.state[parameter]
            if not state:
                state["step"] = torch.zeros((), device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter, requires_grad=False)
                state["exp_avg_sq"] = torch.zeros_like(parameter, requires_grad=False)
            states |= {f"{index}.{name}": value for name, value in state.items()}
        return states

    def load_state_dict(self, state_dict: dict[str, Tensor], /) -> None:
        """Restore the moments."""
        for name, value in self.state_dict().items():
            if value is not state_dict[name]:
                value.copy_(state_dict[name])


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
