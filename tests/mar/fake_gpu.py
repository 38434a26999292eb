"""A GPU that computes nothing, and fails where a number of it is needed (`FakeTensorMode`)."""

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class GpuRng(torch.Generator):
    """A generator that says it is a GPU's; the fake GPU draws nothing."""

    device = torch.device("cuda")


class OnlyGpuIsFake(TorchDispatchMode):
    """Executes what happens on the CPU, as a program with a GPU does."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        devices = {
            leaf.device if isinstance(leaf, Tensor) else leaf
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor | torch.device)
        }
        if any(device.type == "cuda" for device in devices):
            return func(*args, **kwargs)
        with unset_fake_temporarily():
            return func(*args, **kwargs)
