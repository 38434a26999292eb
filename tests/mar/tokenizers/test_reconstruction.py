"""Reconstructions go by the posterior's mean, and are 8-bit images."""

import math

import pytest
import torch

from mar.data.images import to_float, to_uint8
from mar.evaluation.psnr import psnr
from mar.latents.scale import LatentStatistics
from mar.tokenizers.codebook import CodebookUse
from mar.tokenizers.codec import reconstruct
from mar.tokenizers.kl import AutoencoderConfig
from mar.tokenizers.pixels import Pixels, PixelsConfig
from mar.tokenizers.registry import build_tokenizer
from mar.tokenizers.vq import VQ, VQConfig


def pictures(count: int, rng: torch.Generator) -> torch.Tensor:
    return torch.randint(256, (count, 3, 16, 16), generator=rng).to(torch.uint8)


def test_a_reconstruction_is_the_decoded_mean(rng: torch.Generator) -> None:
    config = AutoencoderConfig(
        kind="kl",
        latent_channels=3,
        base_channels=8,
        channel_multipliers=[1, 2],
        num_res_blocks=1,
        encoder_attention=False,
        kl_weight=1e-6,
    )
    model = build_tokenizer(config)
    model.initialize(rng)
    originals = pictures(2, rng)
    with torch.no_grad():
        expected = to_uint8(model.decode(model.encode(to_float(originals))[:, :3]))
    assert torch.equal(reconstruct(model, originals), expected)
    assert torch.equal(reconstruct(model, originals), reconstruct(model, originals))


def test_latents_are_summed_up_along_the_way(rng: torch.Generator) -> None:
    originals = pictures(3, rng)
    statistics = LatentStatistics(3)
    restored = reconstruct(Pixels(PixelsConfig(kind="pixels")), originals, statistics.update)
    assert torch.equal(restored, originals)
    values = to_float(originals).double()
    assert statistics.scale()["std"] == pytest.approx(float(values.std(correction=0)), rel=1e-6)
    assert statistics.count == 3


def test_a_quantised_reconstruction_is_decoded_from_codes_which_are_counted(
    rng: torch.Generator,
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
    model.initialize(rng)
    originals = pictures(2, rng)
    use = CodebookUse(model.codebook_size)
    with torch.no_grad():
        indices = model.quantise(model.encode(to_float(originals)))
        expected = to_uint8(model.decode_indices(indices))
    restored = reconstruct(model, originals, lambda seen: use.update(model.quantise(seen.mean)))
    assert torch.equal(restored, expected)
    assert use.compute()["codebook_use"] == pytest.approx(len(indices.unique()) / 9)


def test_psnr_of_nothing_lost_is_infinite(rng: torch.Generator) -> None:
    originals = pictures(2, rng).clamp(20, 235)
    assert psnr(originals, originals) == math.inf
    assert psnr(originals + 10, originals) == pytest.approx(20 * math.log10(255 / 10))


def test_no_images_have_no_reconstructions(rng: torch.Generator) -> None:
    nothing = pictures(0, rng)
    model = build_tokenizer(PixelsConfig(kind="pixels"))
    assert reconstruct(model, nothing).shape == nothing.shape
