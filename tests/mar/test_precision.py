"""Numbers are as wide as the device allows, and multiplied as precisely as was asked for."""

from typing import Any

import pytest
import torch

from mar.precision import Precision, arithmetic, check_precision, widest_float


@pytest.mark.parametrize(
    ("device", "dtype"),
    [("cpu", torch.float64), ("cuda", torch.float64), ("mps", torch.float32)],
)
def test_only_apples_gpus_have_no_float64(device: str, dtype: torch.dtype) -> None:
    assert widest_float(torch.device(device)) == dtype


@pytest.mark.parametrize(("precision", "allowed"), [("float32", False), ("tf32", True)])
def test_arithmetic_of_a_gpu_is_chosen_for_the_block_alone(
    precision: Precision, allowed: bool
) -> None:
    """The switches are there without a GPU as well."""
    backends: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn]
    before = [backend.allow_tf32 for backend in backends]
    with arithmetic(precision, torch.device("cuda")):
        assert [backend.allow_tf32 for backend in backends] == [allowed, allowed]
    assert [backend.allow_tf32 for backend in backends] == before


def test_bfloat16_multiplies_numbers_of_8_bits(rng: torch.Generator) -> None:
    x = torch.randn(30, 30, generator=rng)
    cpu = torch.device("cpu")
    with arithmetic("float32", cpu):
        assert (x @ x).dtype == torch.float32
    with arithmetic("bfloat16", cpu):
        product = x @ x
    assert torch.equal(product, x.bfloat16() @ x.bfloat16())


def test_arithmetic_that_a_device_lacks_names_the_key() -> None:
    with pytest.raises(ValueError, match=r"latents\.precision: 'tf32' is .* device is mps"):
        check_precision("tf32", torch.device("mps"), "latents.precision")
    check_precision("tf32", torch.device("cuda"), "latents.precision")
