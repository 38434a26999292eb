"""Unpickle the tensors of a file and run nothing of what else it names.

A pickle may name any function or class of any library, to be imported and called. Here no name is
looked up: tensors, dictionaries, lists and plain values are made, and everything else becomes a
placeholder that accepts whatever is done to it and does nothing.
"""
# torch's functions that rebuild tensors have no types:
# pyright: reportPrivateUsage=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor
from torch._utils import _rebuild_tensor_v2, _rebuild_tensor_v3


class Placeholder:
    """Stands in for an object of another library; `__name__` of its class says for which."""

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __new__(cls, *args: object, **kwargs: object) -> "Placeholder":
        """Make one, whatever the arguments."""
        return super().__new__(cls)

    def __call__(self, *args: object, **kwargs: object) -> "Placeholder":
        """Return itself: a pickle may call what another call gave it."""
        return self

    def __setstate__(self, state: object) -> None:
        """Forget a state."""

    def __setitem__(self, key: object, value: object) -> None:
        """Forget an entry: the object may be a kind of dictionary."""

    def append(self, item: object) -> None:
        """Forget an entry: the object may be a kind of list."""

    def extend(self, items: object) -> None:
        """Forget entries."""

    def add(self, item: object) -> None:
        """Forget an entry: the object may be a kind of set."""


class Rebuild:
    """One of the functions of torch that make tensors; nothing about it can be changed."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Tensor]) -> None:
        self._make = make

    def __call__(self, *args: Any) -> Tensor:
        """Make a tensor."""
        return self._make(*args)

    def __setstate__(self, state: object) -> None:
        """Refuse a state."""
        raise pickle.UnpicklingError("a function cannot have a state")


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_: object) -> Tensor:
    return _rebuild_tensor_v2(storage, offset, size, stride, False, OrderedDict())


def _tensor_of_dtype(
    storage: Any, offset: int, size: Any, stride: Any, _: object, __: object, dtype: Any, *___: Any
) -> Tensor:
    return _rebuild_tensor_v3(storage, offset, size, stride, False, OrderedDict(), dtype)


def _parameter(tensor: Tensor, *_: object) -> Tensor:
    if type(tensor) is not Tensor:
        raise pickle.UnpicklingError("a parameter is made of something else than a tensor")
    return tensor


# What is made, by its name in a pickle; whether a tensor has a gradient is not kept.
MADE: dict[str, object] = {
    "collections.OrderedDict": OrderedDict,
    "torch.storage.UntypedStorage": torch.UntypedStorage,
    "torch._utils._rebuild_tensor": Rebuild(_tensor),
    "torch._utils._rebuild_tensor_v2": Rebuild(_tensor),
    "torch._utils._rebuild_tensor_v3": Rebuild(_tensor_of_dtype),
    "torch._utils._rebuild_parameter": Rebuild(_parameter),
    "torch._utils._rebuild_parameter_with_state": Rebuild(_parameter),
    **{str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)},
}


class Loaded(NamedTuple):
    """What a file holds, and the names that are placeholders in it, sorted."""

    content: object
    foreign: list[str]


def load(path: Path, *, mapped: bool) -> Loaded:
    """Read a file of torch.save that is known to be no TorchScript archive.

    Args:
        path: The file.
        mapped: Whether tensors stay in the file until they are used.

    Raises:
        Exception: of any kind, where the file is damaged.
    """
    placeholders: dict[str, type[Placeholder]] = {}

    # The unpickler that is written in Python: what a damaged file says of its memory is no more
    # than a key of a dictionary.
    class Unpickler(pickle._Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            full = f"{'builtins' if module == '__builtin__' else module}.{name}"  # Python 2's name
            if full in MADE:
                return MADE[full]
            if full not in placeholders:
                placeholders[full] = type(full, (Placeholder,), {})
            return placeholders[full]

    def load_one(file: BinaryIO, **options: Any) -> object:
        return Unpickler(file, **options).load()

    module = SimpleNamespace(
        __name__="inert", Unpickler=Unpickler, load=load_one, UnpicklingError=pickle.UnpicklingError
    )
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about old pickles
        content = torch.load(
            path if mapped else file,
            map_location="cpu",
            weights_only=False,
            pickle_module=module,
            mmap=mapped,
        )
    return Loaded(content, sorted(placeholders))


def name_of(value: object) -> str:
    """Return the name of a value's type; of a placeholder, what it stands for."""
    return type(value).__name__
