"""One optimiser step of any model: gradient accumulation, clipping, AdamW, EMA."""

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Generic, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mar import distributed
from mar.averaging import power
from mar.distributed import Parallel
from mar.training import parallelism
from mar.training.checkpoints import Checkpoints, History, Stateful
from mar.training.optimisation import OptimisationConfig, ParameterGroup, learning_rate
from mar.training.parallelism import local_tensor, whole_tensor
from mar.training.step import Step


M = TypeVar("M", bound=nn.Module)

MAX_SKIPPED = 10  # steps in a row without a finite gradient; ours

Average = Callable[[list[Tensor], list[Tensor], int | None], None]  # averages, values, unused


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

    def checkpoint_bytes(self) -> int:
        """Return the size of a checkpoint, all processes' shares together."""
        states = [state for part in self.parts().values() for state in part.state_dict().values()]
        return sum(each.numel() * each.element_size() for each in states if torch.is_tensor(each))

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
