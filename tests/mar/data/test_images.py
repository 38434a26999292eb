"""Bytes become floats and bytes again, to the nearest value, and NaN is refused."""

import pytest
import torch

from mar.data.images import to_float, to_uint8


def test_bytes_survive_the_round_trip() -> None:
    images = torch.arange(256, dtype=torch.uint8).expand(1, 3, 2, 256)
    floats = to_float(images)
    assert floats.min() == -1
    assert floats.max() == 1
    assert torch.equal(to_uint8(floats), images)


def test_values_round_to_the_nearest_byte_and_are_clipped() -> None:
    values = torch.tensor([-9.0, -1.0, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1, 1.0, float("inf")])
    assert to_uint8(values.expand(1, 3, 1, 6))[0, 0, 0].tolist() == [0, 0, 0, 1, 255, 255]


def test_nan_is_refused() -> None:
    images = torch.zeros(3, 3, 2, 2)
    images[1, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"^1 of 3 images hold nan$"):
        to_uint8(images)
