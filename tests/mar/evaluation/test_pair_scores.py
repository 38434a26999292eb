"""Scores of pairs of images are those of their closed forms."""

import math

import pytest
import torch

from mar.evaluation.reconstruction_metrics import difference, score


def pictures(count: int, rng: torch.Generator) -> torch.Tensor:
    return torch.randint(256, (count, 3, 16, 16), generator=rng).to(torch.uint8)


def test_psnr_is_that_of_the_mean_error_over_all_images(rng: torch.Generator) -> None:
    originals = pictures(6, rng).clamp(20, 235)
    reconstructions = originals.clone()
    reconstructions[:4] += 10
    pairs = [(reconstructions[:2], originals[:2]), (reconstructions[2:], originals[2:])]
    mean_square = 4 / 6 * 10**2
    expected = 10 * math.log10(255**2 / mean_square)
    assert score(pairs)["psnr"] == pytest.approx(expected, rel=1e-5)


def test_ssim_of_plain_images_is_that_of_its_closed_form(rng: torch.Generator) -> None:
    originals = pictures(1, rng)
    assert score([(originals, originals)])["ssim"] == pytest.approx(1, abs=1e-6)
    dark, bright = (torch.full_like(originals, value) for value in (2, 5))
    c = (0.01 * 255) ** 2
    expected = (2 * 2 * 5 + c) / (2**2 + 5**2 + c)  # of means alone: nothing varies
    assert score([(dark, bright)])["ssim"] == pytest.approx(expected, rel=1e-5)
    mixed = score([(dark, bright), (originals, originals)])["ssim"]
    assert mixed == pytest.approx((expected + 1) / 2, rel=1e-5)


def test_differences_are_enlarged_around_mid_grey() -> None:
    original = torch.full((1, 3, 1, 4), 100, dtype=torch.uint8)
    reconstruction = torch.tensor([100, 110, 95, 200], dtype=torch.uint8).expand(1, 3, 1, 4)
    shown = difference(original, reconstruction, gain=4)
    assert shown[0, 0, 0].tolist() == [128, 168, 108, 255]


def test_no_images_have_no_scores() -> None:
    assert score([]) == {}
