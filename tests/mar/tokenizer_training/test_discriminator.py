"""The discriminator is pix2pix's in shape, and judges every image by itself."""

import pytest
import torch
from torch import Tensor, nn

from mar.tokenizer_training.discriminator import PatchDiscriminator, smallest_image


def fresh(base_channels: int = 8, num_layers: int = 2, seed: int = 0) -> PatchDiscriminator:
    model = PatchDiscriminator(base_channels, num_layers)
    model.initialize(torch.Generator().manual_seed(seed))
    return model


@pytest.fixture
def images(rng: torch.Generator) -> Tensor:
    return 2 * torch.rand(4, 3, 32, 32, generator=rng) - 1


def test_it_has_the_published_sizes() -> None:
    """64, 128, 256 and 512 channels; 4 x 4 kernels; 70 pixels in a patch."""
    with torch.device("meta"):
        model = PatchDiscriminator(64, 3)
        logits = model(torch.zeros(1, 3, 256, 256))
    kernels = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert [kernel.out_channels for kernel in kernels] == [64, 128, 256, 512, 1]
    assert [kernel.stride[0] for kernel in kernels] == [2, 2, 2, 1, 1]
    weights = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512) + 64 + 1
    norms = 2 * (128 + 256 + 512)
    assert sum(parameter.numel() for parameter in model.parameters()) == weights + norms
    assert logits.shape == (1, 30, 30)
    patch = 1
    for kernel in reversed(kernels):
        patch = (patch - 1) * kernel.stride[0] + 4
    assert patch == 70


def test_channels_stop_at_eight_times_the_first() -> None:
    with torch.device("meta"):
        model = PatchDiscriminator(4, 5)
    widths = [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert widths == [4, 8, 16, 32, 32, 32, 1]


def test_what_it_says_of_an_image_does_not_depend_on_the_others(images: Tensor) -> None:
    model = fresh()
    whole = model(images)
    assert torch.allclose(whole, torch.cat([model(image[None]) for image in images]), atol=1e-6)
    assert dict(model.named_buffers()) == {}
    assert torch.equal(model.eval()(images), whole)


def test_it_depends_on_its_seed_alone(images: Tensor) -> None:
    torch.rand(3)
    first, second, other = (fresh(seed=seed)(images) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_the_smallest_images_have_one_patch(num_layers: int) -> None:
    side = smallest_image(num_layers)
    model = fresh(num_layers=num_layers)
    assert model(torch.zeros(1, 3, side, side)).shape == (1, 1, 1)
    with pytest.raises((RuntimeError, ValueError), match=r"size|than 1 value"):
        model(torch.zeros(1, 3, side - 1, side - 1))
