"""A tiny generator, and a random number generator; nothing else is shared by all tests."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import settings
from tiny_generator import FIELDS

from mar.latents.posterior import LatentShape
from mar.model.mar import MAR, GeneratorConfig


# Tensors here are too small to share out: on a busy machine, threads that wait for each other made
# the tests eight times slower.
torch.set_num_threads(1)

# Nor is a slow machine a failure; and a commit is tested on the same examples every time.
settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def tiny_model() -> MAR:
    """Return a generator in evaluation mode: 4 rows of 3 tokens with 8 channels, 5 classes.

    Fresh weights hold many zeros, behind which a fault could hide, so all are moved from there.
    """
    config = GeneratorConfig.model_validate(FIELDS)
    return moved(MAR(config, LatentShape(channels=2, height=8, width=6), num_classes=5))


def moved(model: MAR) -> MAR:
    """Set all weights to others than zero, and return the model in evaluation mode."""
    rng = torch.Generator().manual_seed(1)
    model.initialize(rng)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=0.1)
    return model.eval()


@pytest.fixture
def variant(tiny_model: MAR) -> Callable[..., MAR]:
    """Return a maker of the tiny generator with parts of its config changed, on square patches."""

    def make(codebook_size: int | None = None, **changes: object) -> MAR:
        same = {"decoder_width": 16, "decoder_heads": 2}
        fields = tiny_model.config.model_dump()
        fields = {**fields, "size": {**fields["size"], **same}, **changes}
        config = GeneratorConfig.model_validate(fields)
        return moved(MAR(config, tiny_model.latent, 5, codebook_size))

    return make
