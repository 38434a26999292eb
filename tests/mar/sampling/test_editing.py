"""An edit keeps what is not hidden, and generates what is."""

from contextlib import nullcontext

import pytest
import torch
from sample_configs import sample_config
from torch import Tensor

from mar.latents.posterior import LatentShape
from mar.model.mar import MAR
from mar.sampling.editing import keep
from mar.sampling.images import generate_images
from mar.tokenizers.pixels import Pixels, PixelsConfig


CONFIG = sample_config(num_images=3, num_steps=4, guidance_scale=1.0, x_0_bound=1.0)
LABELS = torch.tensor([0, 3, 1])


@pytest.fixture
def model(tiny_model: MAR) -> MAR:
    """Return a generator of 4 x 3 tokens of 2 x 2 pixels."""
    model = MAR(tiny_model.config, LatentShape(channels=3, height=8, width=6), num_classes=5)
    model.initialize(torch.Generator().manual_seed(0))
    return model.eval()


def edit(model: MAR, images: Tensor, hidden: Tensor) -> Tensor:
    pixels = Pixels(PixelsConfig(kind="pixels"))
    known = keep(model, pixels, images, hidden, latent_std=0.5)
    return generate_images(
        model,
        pixels,
        LABELS,
        range(3),
        CONFIG,
        latent_std=0.5,
        autocast=nullcontext,
        known=known,
    )


def test_what_is_not_hidden_stays_and_the_rest_is_generated(
    model: MAR, rng: torch.Generator
) -> None:
    images = torch.randint(256, (3, 3, 8, 6), generator=rng, dtype=torch.uint8)
    hidden = torch.zeros(8, 6, dtype=torch.bool)
    hidden[3, 2] = True  # one pixel hides its token: rows 2 and 3, columns 2 and 3
    whole = torch.zeros(8, 6, dtype=torch.bool)
    whole[2:4, 2:4] = True
    edited = edit(model, images, hidden)
    assert torch.equal(edited[:, :, ~whole], images[:, :, ~whole])
    assert (edited[:, :, whole] != images[:, :, whole]).float().mean() > 0.9


def test_with_all_hidden_the_images_do_not_count(model: MAR, rng: torch.Generator) -> None:
    hidden = torch.ones(8, 6, dtype=torch.bool)
    first, second = torch.randint(256, (2, 3, 3, 8, 6), generator=rng, dtype=torch.uint8)
    assert torch.equal(edit(model, first, hidden), edit(model, second, hidden))


def test_images_of_another_size_are_refused(model: MAR) -> None:
    images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="images must have 8 x 6 pixels, got 8 x 8"):
        edit(model, images, torch.ones(8, 8, dtype=torch.bool))


@pytest.mark.parametrize("size", [(4, 3), (8, 8), (16, 12)])
def test_a_mask_of_another_size_is_refused(model: MAR, size: tuple[int, int]) -> None:
    images = torch.zeros(3, 3, 8, 6, dtype=torch.uint8)
    with pytest.raises(ValueError, match=f"the mask must have 8 x 6 pixels, got {size[0]} x"):
        edit(model, images, torch.ones(size, dtype=torch.bool))
