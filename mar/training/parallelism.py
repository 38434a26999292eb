"""How several processes train one model: whole in each (DDP), or spread over them (FSDP).

Gradients are sums over the whole batch in either case, so a step is that of one process up to
rounding.
"""
# torch.distributed has few types:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import copy
import warnings
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from mar import distributed
from mar.distributed import Parallel


M = TypeVar("M", bound=nn.Module)


class Replicas(Generic[M]):
    """The whole model in each process (or the only one); gradients are added up at the end."""

    factor = 1.0  # of each loss
    is_spread = False  # whether each process has a part of the weights alone

    def __init__(self, model: M) -> None:
        self._model = model
        self.network: Any = model

    def accumulate(self, last: bool) -> AbstractContextManager[object]:
        """Return the context of forward and backward pass of a part of a batch."""
        return nullcontext()

    def add_up_gradients(self) -> None:
        """Make each gradient the sum over all processes, if the backward pass has not done so."""
        add_up_gradients(self._model.parameters())

    def whole(self, model: M) -> M | None:
        """Return a model with all of its weights, in the main process alone."""
        return model if distributed.is_main() else None


class DDP(Replicas[M]):
    """The whole model in each process; gradients are added up during the backward pass."""

    def __init__(self, model: M) -> None:
        super().__init__(model)
        self.factor = float(distributed.num_processes())  # DDP takes the mean over processes
        with warnings.catch_warnings():  # torch 2.14 renamed the argument
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            self.network = DistributedDataParallel(
                model, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    def accumulate(self, last: bool) -> AbstractContextManager[object]:
        """Return the context of forward and backward pass of a part of a batch."""
        return nullcontext() if last else self.network.no_sync()

    def add_up_gradients(self) -> None:
        """Do nothing: the last backward pass has."""


class FSDP(Replicas[M]):
    """Weights, gradients, moments and averages spread over the processes (FSDP2).

    Each transformer block and each block of the denoiser is gathered when it is needed; what is
    left of the model is gathered for a whole pass.
    """

    is_spread = True

    def __init__(self, model: M, averages: Sequence[M]) -> None:
        super().__init__(model)
        self.factor = float(distributed.num_processes())  # FSDP takes the mean over processes
        # Where weights are put together again: with the buffers of the model, and in CPU memory.
        self._whole = copy.deepcopy(averages[0]).cpu() if distributed.is_main() else None
        for spread in (model, *averages):
            for module in spread.modules():
                if isinstance(module, nn.ModuleList):
                    for block in module:
                        fully_shard(block)
            fully_shard(spread)

    def accumulate(self, last: bool) -> AbstractContextManager[object]:
        """Return the context of forward and backward pass of a part of a batch."""
        assert isinstance(self._model, FSDPModule)
        self._model.set_requires_gradient_sync(last)
        return nullcontext()

    def add_up_gradients(self) -> None:
        """Do nothing: the last backward pass has."""

    def whole(self, model: M) -> M | None:
        """Return a model with all of its weights, in the main process alone."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        tensors = get_model_state_dict(model, options=options)
        if self._whole is None:
            return None
        self._whole.load_state_dict(tensors)
        return self._whole


def divide(model: M, averages: Sequence[M], parallel: Parallel | Literal["none"]) -> Replicas[M]:
    """Divide a training among the processes; of one process alone nothing changes.

    Args:
        model: What is trained; under FSDP its parameters become shards, in place.
        averages: Its averages, likewise; at least one.
        parallel: How.
    """
    if not distributed.is_distributed():
        return Replicas(model)
    match parallel:
        case "none":
            return Replicas(model)
        case "ddp":
            return DDP(model)
        case "fsdp":
            return FSDP(model, averages)


def add_up_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Make each gradient the sum over all processes; they travel as one tensor."""
    if not distributed.is_distributed():
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if gradients:
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def local_tensor(tensor: Tensor) -> Tensor:
    """Return this process's shard of a tensor, or the tensor itself if it is not spread."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_tensor(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor that may be spread over processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
