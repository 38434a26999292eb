"""Reconstructions go by the posterior's mean, and are scored as 8-bit images."""

import math

import pytest
import torch

from mar import tokenizer
from mar.autoencoder import AutoencoderConfig
from mar.codebook import CodebookUse
from mar.images import to_float, to_uint8
from mar.latent_scale import LatentStatistics
from mar.pixels import Pixels, PixelsConfig
from mar.reconstruction import difference, reconstruct, score
from mar.vq import VQ, VQConfig


def pictures(count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(256, (count, 3, 16, 16), generator=generator).to(torch.uint8)


def test_a_reconstruction_is_the_decoded_mean(generator: torch.Generator) -> None:
    config = AutoencoderConfig(
        kind="kl",
        latent_channels=3,
        base_channels=8,
        channel_multipliers=[1, 2],
        num_res_blocks=1,
        encoder_attention=False,
        kl_weight=1e-6,
    )
    model = tokenizer.build(config)
    model.initialize(generator)
    originals = pictures(2, generator)
    with torch.no_grad():
        expected = to_uint8(model.decode(model.encode(to_float(originals))[:, :3]))
    assert torch.equal(reconstruct(model, originals), expected)
    assert torch.equal(reconstruct(model, originals), reconstruct(model, originals))


def test_latents_are_summed_up_along_the_way(generator: torch.Generator) -> None:
    originals = pictures(3, generator)
    statistics = LatentStatistics(3)
    restored = reconstruct(Pixels(PixelsConfig(kind="pixels")), originals, statistics=statistics)
    assert torch.equal(restored, originals)
    values = to_float(originals).double()
    assert statistics.scale()["std"] == pytest.approx(float(values.std(correction=0)), rel=1e-6)
    assert statistics.count == 3


def test_a_quantised_reconstruction_is_decoded_from_codes_which_are_counted(
    generator: torch.Generator,
) -> None:
    config = VQConfig(
        kind="vq",
        latent_channels=3,
        base_channels=8,
        channel_multipliers=[1, 2],
        num_res_blocks=1,
        encoder_attention=False,
        codebook_size=9,
        commitment_weight=0.25,
        revive_dead=True,
    )
    model = VQ(config)
    model.initialize(generator)
    originals = pictures(2, generator)
    use = CodebookUse(model.codebook_size)
    with torch.no_grad():
        indices = model.quantise(model.encode(to_float(originals)))
        expected = to_uint8(model.decode_indices(indices))
    assert torch.equal(reconstruct(model, originals, use), expected)
    assert use.compute()["codebook_use"] == pytest.approx(len(indices.unique()) / 9)


def test_psnr_is_that_of_the_mean_error_over_all_images(generator: torch.Generator) -> None:
    originals = pictures(6, generator).clamp(20, 235)
    reconstructions = originals.clone()
    reconstructions[:4] += 10
    pairs = [(reconstructions[:2], originals[:2]), (reconstructions[2:], originals[2:])]
    mean_square = 4 / 6 * 10**2
    expected = 10 * math.log10(255**2 / mean_square)
    assert score(pairs)["psnr"] == pytest.approx(expected, rel=1e-5)


def test_ssim_of_plain_images_is_that_of_its_closed_form(generator: torch.Generator) -> None:
    originals = pictures(1, generator)
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


def test_no_images_have_no_scores(generator: torch.Generator) -> None:
    assert score([]) == {}
    nothing = pictures(0, generator)
    model = tokenizer.build(PixelsConfig(kind="pixels"))
    assert reconstruct(model, nothing).shape == nothing.shape
