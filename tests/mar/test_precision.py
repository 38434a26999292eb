"""Numbers are as wide as the device allows: float64, but on Apple's GPUs float32."""

import pytest
import torch

from mar.precision import widest_float


@pytest.mark.parametrize(
    ("device", "dtype"),
    [("cpu", torch.float64), ("cuda", torch.float64), ("mps", torch.float32)],
)
def test_only_apples_gpus_have_no_float64(device: str, dtype: torch.dtype) -> None:
    assert widest_float(torch.device(device)) == dtype
