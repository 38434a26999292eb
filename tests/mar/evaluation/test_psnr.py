"""PSNR is that of torchmetrics, whose import takes seconds."""

import math

import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio

from mar.evaluation.psnr import psnr


def test_psnr_is_that_of_torchmetrics(rng: torch.Generator) -> None:
    images, originals = torch.randint(0, 256, (2, 5, 3, 8, 8), generator=rng, dtype=torch.uint8)
    expected = peak_signal_noise_ratio(images.double(), originals.double(), data_range=255.0)
    assert psnr(images, originals) == pytest.approx(float(expected), abs=1e-6)
    assert psnr(images, images) == math.inf
