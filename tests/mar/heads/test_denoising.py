"""A compiled denoising step is one graph for all steps, and draws the same tokens."""

import copy
from collections.abc import Callable, Generator

import jaxtyping
import pytest
import torch
from sample_configs import SAMPLERS, sample_config
from torch._dynamo.testing import CompileCounter

from mar.model.compilation import compile_sampling
from mar.model.mar import MAR
from mar.sampling.generate import generate
from mar.sampling.noise import draw_noise


@pytest.fixture
def without_shape_checks() -> Generator[None]:
    """Leave out jaxtyping's checks, which a graph cannot hold and which programs are without."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("without_shape_checks")
def test_one_graph_serves_all_steps_and_draws_the_same_tokens(variant: Callable[..., MAR]) -> None:
    """Generation steps differ in tokens, in guidance and, annealed, in denoising steps."""
    head = {"kind": "diffusion", "size": {"blocks": 1, "width": 20}, "noise_samples_per_token": 1}
    model = variant(head=head).requires_grad_(False).eval()
    config = sample_config(head={**SAMPLERS["diffusion"], "num_steps": 5, "final_num_steps": 2})
    labels, noise = torch.arange(3), draw_noise(model, range(3), config)
    expected = generate(model, labels, noise, config)
    counter = CompileCounter()
    assert compile_sampling(model, counter, mode=None)
    assert torch.allclose(generate(model, labels, noise, config), expected, atol=1e-5)
    assert counter.frame_count == 1
    other = generate(model, labels[:2], draw_noise(model, range(2), config), config)
    assert torch.allclose(other, expected[:2], atol=1e-5)
    assert counter.frame_count == 1
    generate(copy.deepcopy(model), labels, noise, config)  # is not compiled
    assert counter.frame_count == 1


def test_a_head_without_denoising_steps_has_nothing_to_compile(variant: Callable[..., MAR]) -> None:
    assert not compile_sampling(variant(head={"kind": "l2"}))
