"""Pixels are their own latents: nothing changes, nothing is trained, and a device is known."""

import torch

from mar.latents.posterior import Posterior
from mar.tokenizers.pixels import Pixels, PixelsConfig


def test_encoding_and_decoding_change_nothing(rng: torch.Generator) -> None:
    model = Pixels(PixelsConfig(kind="pixels"))
    images = torch.rand(2, 3, 4, 5, generator=rng) * 2 - 1
    posterior = Posterior.of(model.encode(images), model.latent_channels)
    assert posterior.log_variance is None
    assert torch.equal(model.decode(posterior.sample(torch.ones_like(images))), images)
    assert model.quantise(images) is None


def test_there_is_nothing_to_train_or_to_save() -> None:
    model = Pixels(PixelsConfig(kind="pixels"))
    model.initialize(torch.Generator())
    assert list(model.parameters()) == []
    assert model.state_dict() == {}
    assert (model.stride, model.latent_channels, model.codebook_size) == (1, 3, None)


def test_it_moves_between_devices_all_the_same() -> None:
    model = Pixels(PixelsConfig(kind="pixels"))
    assert model.device == torch.device("cpu")
    assert model.to("meta").device == torch.device("meta")
