"""Generated images are decoded latents, the same in batches of any size."""

from contextlib import nullcontext

import pytest
import torch
from sample_configs import sample_config
from torch import Tensor

from mar.data.images import to_uint8
from mar.model.mar import MAR
from mar.sampling.generate import generate
from mar.sampling.images import generate_images
from mar.sampling.noise import draw_noise
from mar.tokenizers.interface import Tokenizer
from mar.tokenizers.kl import AutoencoderConfig, AutoencoderKL
from mar.tokenizers.registry import build_tokenizer


LABELS = torch.tensor([0, 3, 1, 4, 4, 2, 0, 1])
CONFIG = sample_config(seed=5, num_steps=4)


@pytest.fixture
def decoder(rng: torch.Generator) -> Tokenizer:
    """Return a tokenizer of stride 2 for the latents of the tiny generator."""
    config = AutoencoderConfig(
        kind="kl",
        latent_channels=2,
        base_channels=8,
        channel_multipliers=[1, 2],
        num_res_blocks=1,
        encoder_attention=False,
        kl_weight=1e-6,
    )
    model = build_tokenizer(config)
    assert isinstance(model, AutoencoderKL)
    model.initialize(rng)
    with torch.no_grad():
        model.decoder.conv_out.weight.mul_(5)  # pictures with some contrast
    return model.eval()


def images(
    model: MAR, decoder: Tokenizer, indices: list[int], *, latent_std: float = 1.7
) -> Tensor:
    return generate_images(
        model,
        decoder,
        LABELS[indices],
        indices,
        CONFIG,
        latent_std=latent_std,
        autocast=nullcontext,
    )


def test_images_are_the_same_in_batches_of_any_size(tiny_model: MAR, decoder: Tokenizer) -> None:
    together = images(tiny_model, decoder, list(range(8))).int()
    parts = [images(tiny_model, decoder, part) for part in ([0, 1, 2, 3], [4, 5, 6, 7])]
    assert int((together - torch.cat(parts)).abs().max()) <= 1  # a rounding may fall otherwise
    assert float((together[0] - together[1]).float().abs().mean()) > 2


def test_images_are_decoded_latents_of_their_scale(tiny_model: MAR, decoder: Tokenizer) -> None:
    noise = draw_noise(tiny_model, [0, 1, 2], CONFIG)
    with torch.no_grad():
        latents = generate(tiny_model, LABELS[:3], noise, CONFIG)
        expected = to_uint8(decoder.decode(1.7 * latents))
    assert torch.equal(images(tiny_model, decoder, [0, 1, 2]), expected)
    assert expected.shape == (3, 3, 16, 12)
    assert not torch.equal(images(tiny_model, decoder, [0, 1, 2], latent_std=0.5), expected)


def test_a_broken_image_is_refused(tiny_model: MAR, decoder: Tokenizer) -> None:
    weight = tiny_model.get_parameter("transformer.condition.class_embedding.weight")
    with torch.no_grad():
        weight[3] = torch.nan
    with pytest.raises(
        ValueError, match="1 of 3 images hold nan or infinite values, image 1 first"
    ):
        images(tiny_model, decoder, [0, 1, 2])
