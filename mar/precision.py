"""Number types: the widest one of a device, and that of the products of a forward pass."""

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch


Precision = Literal["float32", "tf32", "bfloat16"]


def widest_float(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on Apple's GPUs, which have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def check_precision(precision: Precision, device: torch.device, key: str) -> None:
    """Refuse arithmetic that a device does not have.

    Raises:
        ValueError: TensorFloat32 is asked of another device than a CUDA GPU; the message names the
            key of `params.yaml`.
    """
    if precision == "tf32" and device.type != "cuda":
        raise ValueError(
            f"{key}: 'tf32' is arithmetic of CUDA GPUs, and the device is {device}; expected "
            "'float32' or 'bfloat16'"
        )


@contextmanager
def arithmetic(precision: Precision, device: torch.device) -> Generator[None]:
    """Multiply numbers of a precision within the block.

    float32 is what it says on a GPU as well, where torch would else use TensorFloat32 (10 bits of
    mantissa) in convolutions. bfloat16 has 7 bits; sums are in float32 in each of the three.
    """
    check_precision(precision, device, "precision")
    if precision == "bfloat16":
        with torch.autocast(device.type, dtype=torch.bfloat16):
            yield
        return
    # The older of torch's two interfaces: torch refuses to go on where both are used.
    backends: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn]
    before: list[bool] = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = precision == "tf32"
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which products are those of their inputs' types."""
    if not torch.amp.is_autocast_available(device.type):  # nor can it be on
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


@contextmanager
def one_thread() -> Generator[int]:
    """Compute each operation on the CPU in one thread within the block; yield how many it had.

    With several, the order of sums, and so the last digits, depend on how many there are.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)
