"""Batches shrink until memory holds them, and the images stay the same."""

from functools import partial

import pytest
import torch
from sample_configs import sample_config
from torch import Tensor

from mar.model.mar import MAR
from mar.sampling.generate import generate
from mar.sampling.noise import draw_noise
from stages.image_batches import ImageBatches


CPU_MESSAGE = (
    "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
)
ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError(CPU_MESSAGE),
    MemoryError(),
]


@pytest.fixture(autouse=True)
def size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAR_SAMPLE_BATCH", "8")


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_out_of_memory_halves_the_batch_and_goes_on_with_the_same_images(
    tiny_model: MAR, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    config = sample_config()
    sizes: list[int] = []

    def make(indices: Tensor, most: int) -> Tensor:
        sizes.append(len(indices))
        if len(indices) > most:
            raise error
        noise = draw_noise(tiny_model, indices.tolist(), config)
        return generate(tiny_model, indices % 5, noise, config)

    whole = make(torch.arange(7), 7)
    sizes.clear()
    batches = ImageBatches("sample")
    first = batches.make(torch.arange(7), partial(make, most=2))
    assert sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    assert torch.allclose(first, whole, atol=1e-4)
    assert capsys.readouterr().err.splitlines() == [
        "sample: there is not enough memory for 7 images at a time; trying 3 (MAR_SAMPLE_BATCH)",
        "sample: there is not enough memory for 3 images at a time; trying 1 (MAR_SAMPLE_BATCH)",
    ]
    sizes.clear()
    batches.make(torch.arange(2), partial(make, most=2))
    assert sizes == [1, 1]  # what was found is kept


def test_one_image_that_memory_does_not_hold_is_an_error() -> None:
    def make(indices: Tensor) -> Tensor:
        raise torch.OutOfMemoryError(f"CUDA out of memory with {len(indices)}")

    with pytest.raises(torch.OutOfMemoryError, match="with 1"):
        ImageBatches("sample").make(torch.arange(7), make)


def test_other_errors_are_not_retried() -> None:
    calls: list[int] = []

    def make(indices: Tensor) -> Tensor:
        calls.append(len(indices))
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        ImageBatches("sample").make(torch.arange(7), make)
    assert calls == [7]


def test_an_allocation_that_the_cpu_refuses_counts() -> None:
    def make(indices: Tensor) -> Tensor:
        return torch.empty(10**15 if len(indices) > 1 else 1)

    assert len(ImageBatches("sample").make(torch.arange(3), make)) == 3
