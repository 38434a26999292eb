"""What is computed in the widest numbers of a device works where those are float32."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mar import precision
from mar.heads.base import Noise
from mar.heads.cross_entropy import CrossEntropy, CrossEntropyConfig, CrossEntropySampler
from mar.model.masking import sample_mask_ratio
from mar.precision import widest_float


class Narrow(TorchDispatchMode):
    """Refuse to draw float64, or to convert to it, as Apple's GPUs do."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in {torch.ops.aten.rand, torch.ops.aten._to_copy}:
            assert result.dtype != torch.float64, func
        return result


@pytest.mark.parametrize(
    ("device", "dtype"),
    [("cpu", torch.float64), ("cuda", torch.float64), ("mps", torch.float32)],
)
def test_only_apples_gpus_have_no_float64(device: str, dtype: torch.dtype) -> None:
    assert widest_float(torch.device(device)) == dtype


def codes(rng: torch.Generator) -> Tensor:
    head = CrossEntropy(CrossEntropyConfig(kind="cross_entropy"), channels=7, z_width=4)
    head.initialize(rng)
    z, z_null = torch.randn(2, 50, 4, generator=rng)
    noise = Noise(torch.randn(50, 1, generator=rng), torch.zeros(0, 50, 1))
    sampler = CrossEntropySampler(kind="cross_entropy", temperature=0.9)
    return head.sample(z, noise, sampler, z_null=z_null, guidance_scale=2.0)


def ratio(rng: torch.Generator) -> Tensor:
    return torch.tensor(sample_mask_ratio(rng, minimum=0.7, std=0.25))


def in_narrow_numbers(
    compute: Callable[[torch.Generator], Tensor], monkeypatch: pytest.MonkeyPatch
) -> Tensor:
    """Stands for a GPU of Apple's, which no test can count on."""

    def narrow(device: torch.device) -> torch.dtype:
        return torch.float32

    with pytest.raises(AssertionError, match="aten"), Narrow():
        compute(torch.Generator().manual_seed(0))
    monkeypatch.setattr(precision, "widest_float", narrow)
    with Narrow():
        return compute(torch.Generator().manual_seed(0))


def test_narrow_numbers_give_the_same_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = codes(torch.Generator().manual_seed(0))
    assert len(wide.unique()) > 1
    assert torch.equal(in_narrow_numbers(codes, monkeypatch), wide)


def test_narrow_numbers_give_a_ratio_of_the_same_range(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert 0.7 < in_narrow_numbers(ratio, monkeypatch) < 1
