"""Reconstructions go by the posterior's mean, and are 8-bit images."""

import math

import pytest
import torch

from mar import tokenizer
from mar.autoencoder import AutoencoderConfig
from mar.codebook import CodebookUse
from mar.images import to_float, to_uint8
from mar.latent_scale import LatentStatistics
from mar.pixels import Pixels, PixelsConfig
from mar.reconstruction import psnr, reconstruct
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
    restored = reconstruct(Pixels(PixelsConfig(kind="pixels")), originals, statistics.update)
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
    restored = reconstruct(model, originals, lambda seen: use.update(model.quantise(seen.mean)))
    assert torch.equal(restored, expected)
    assert use.compute()["codebook_use"] == pytest.approx(len(indices.unique()) / 9)


def test_psnr_of_nothing_lost_is_infinite(generator: torch.Generator) -> None:
    originals = pictures(2, generator).clamp(20, 235)
    assert psnr(originals, originals) == math.inf
    assert psnr(originals + 10, originals) == pytest.approx(20 * math.log10(255 / 10))


def test_no_images_have_no_reconstructions(generator: torch.Generator) -> None:
    nothing = pictures(0, generator)
    model = tokenizer.build(PixelsConfig(kind="pixels"))
    assert reconstruct(model, nothing).shape == nothing.shape
