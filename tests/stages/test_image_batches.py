"""Batches fit a GPU's memory, shrink until memory holds them, and the images stay the same."""

from functools import partial

import pytest
import torch
from sample_configs import sample_config
from torch import Tensor

from mar.model.mar import MAR
from mar.sampling.generate import generate
from mar.sampling.memory import Memory
from mar.sampling.noise import draw_noise
from stages.image_batches import ImageBatches, choose_size


CPU_MESSAGE = (
    "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
)
ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError(CPU_MESSAGE),
    MemoryError(),
]


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
    batches = ImageBatches("sample", 8)
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
        ImageBatches("sample", 8).make(torch.arange(7), make)


def test_other_errors_are_not_retried() -> None:
    calls: list[int] = []

    def make(indices: Tensor) -> Tensor:
        calls.append(len(indices))
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        ImageBatches("sample", 8).make(torch.arange(7), make)
    assert calls == [7]


def test_an_allocation_that_the_cpu_refuses_counts() -> None:
    def make(indices: Tensor) -> Tensor:
        return torch.empty(10**15 if len(indices) > 1 else 1)

    assert len(ImageBatches("sample", 8).make(torch.arange(3), make)) == 3


GPU = torch.device("cuda", 1)
NEEDS = Memory(shared=1_000, generated=10, decoded=40)  # so 64 decoded take 2,560


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        (0, 1),  # at least one is tried
        (1_250 + 625, 10),  # of four fifths, 500 are left: 50 for each
        (1_250 + 4_000, 64),  # 64 are generated and 64 decoded
        (1_250 + 4_125, 74),  # more are generated, and no more decoded at a time
        (10**9, 1024),
    ],
)
def test_a_gpu_takes_as_many_images_as_its_free_memory_holds(
    free: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MAR_SAMPLE_BATCH", raising=False)
    asked: list[torch.device] = []

    def free_memory(device: torch.device) -> int:
        asked.append(device)
        return free

    assert choose_size(GPU, lambda: NEEDS, free_memory) == expected
    assert asked == [GPU]


def test_a_person_and_a_cpu_do_not_ask_for_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise AssertionError

    monkeypatch.delenv("MAR_SAMPLE_BATCH", raising=False)
    assert choose_size(torch.device("cpu"), lambda: NEEDS, refuse) == 256
    monkeypatch.setenv("MAR_SAMPLE_BATCH", "7")
    assert choose_size(GPU, lambda: NEEDS, refuse) == 7
    monkeypatch.setenv("MAR_SAMPLE_BATCH", "0")
    with pytest.raises(ValueError, match="MAR_SAMPLE_BATCH: must be a whole number, 1 or more"):
        choose_size(GPU, lambda: NEEDS, refuse)
