"""The denoiser starts as its table says, and each part of it is the equation it names."""

import math

import pytest
import torch
from torch import nn

from mar.heads.denoiser import Denoiser, DenoiserSize, FinalLayer, ResidualBlock, time_features


def new_denoiser(seed: int) -> Denoiser:
    size = DenoiserSize(blocks=2, width=64)
    denoiser = Denoiser(size, channels=6, out_channels=12, z_width=40)
    denoiser.initialize(torch.Generator().manual_seed(seed))
    return denoiser


def test_time_features_are_cosines_then_sines_of_falling_frequency() -> None:
    features = time_features(torch.tensor([0, 3, 999]))
    for row, t in enumerate([0, 3, 999]):
        for index in (0, 1, 64, 127):
            angle = t * 10000 ** (-index / 128)
            assert float(features[row, index]) == pytest.approx(math.cos(angle), abs=1e-4)
            assert float(features[row, 128 + index]) == pytest.approx(math.sin(angle), abs=1e-4)


def test_initial_weights_are_those_of_the_table() -> None:
    for name, parameter in new_denoiser(0).state_dict().items():
        if "modulation" in name or name.startswith("final.") or name.endswith("bias"):
            assert torch.equal(parameter, torch.zeros_like(parameter)), name
        elif ".norm." in name:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        elif name.startswith("time_mlp"):
            assert float(parameter.std()) == pytest.approx(0.02, rel=0.05), name
        else:
            bound = math.sqrt(6 / sum(parameter.shape))  # Xavier's
            assert 0.98 * bound < float(parameter.abs().max()) <= bound, name
            assert float(parameter.std()) == pytest.approx(bound / math.sqrt(3), rel=0.1), name


def test_initial_weights_depend_on_the_generator_alone() -> None:
    state = torch.get_rng_state()
    first = new_denoiser(0).state_dict()
    torch.set_rng_state(state)
    torch.rand(7)
    second, other = new_denoiser(0).state_dict(), new_denoiser(1).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["input_proj.weight"], other["input_proj.weight"])


def test_a_new_denoiser_returns_zero(rng: torch.Generator) -> None:
    x_t, z = torch.randn(5, 6, generator=rng), torch.randn(5, 40, generator=rng)
    output = new_denoiser(0)(x_t, torch.arange(5), z)
    assert torch.equal(output, torch.zeros(5, 12))


def modulate_by(part: ResidualBlock | FinalLayer, *values: torch.Tensor) -> None:
    """Let the modulation be these values, whatever the condition is."""
    linear = part.modulation[1]
    assert isinstance(linear, nn.Linear)
    nn.init.zeros_(linear.weight)
    linear.bias.data.copy_(torch.cat(values))


def test_a_block_without_gate_is_the_identity(rng: torch.Generator) -> None:
    block = ResidualBlock(8)
    x, y = torch.randn(2, 4, 8, generator=rng)
    modulate_by(block, *torch.randn(2, 8, generator=rng), torch.zeros(8))
    assert torch.equal(block(x, y), x)


def test_the_modulation_is_shift_then_scale_then_gate(rng: torch.Generator) -> None:
    block = ResidualBlock(8)
    block.mlp = nn.Sequential()
    x, y = torch.randn(2, 4, 8, generator=rng)
    shift, gate = torch.randn(2, 8, generator=rng)
    with torch.no_grad():
        modulate_by(block, shift, torch.full((8,), -1.0), gate)  # the scale leaves nothing of x
        assert torch.allclose(block(x, y) - x, (gate * shift).expand(4, 8), atol=1e-6)
        modulate_by(block, torch.zeros(8), torch.full((8,), 2.0), torch.ones(8))
        added = block(x, y) - x
    assert torch.allclose(added.mean(dim=1), torch.zeros(4), atol=1e-5)
    assert torch.allclose(added.std(dim=1, correction=0), torch.full((4,), 3.0), atol=1e-3)


def test_the_last_modulation_is_shift_then_scale(rng: torch.Generator) -> None:
    layer = FinalLayer(8, 8)
    nn.init.eye_(layer.linear.weight)
    nn.init.zeros_(layer.linear.bias)
    x, y = torch.randn(2, 4, 8, generator=rng)
    shift = torch.randn(8, generator=rng)
    with torch.no_grad():
        modulate_by(layer, shift, torch.full((8,), -1.0))
        assert torch.allclose(layer(x, y), shift.expand(4, 8), atol=1e-6)
        modulate_by(layer, torch.zeros(8), torch.full((8,), 2.0))
        found = layer(x, y)
    assert torch.allclose(found.mean(dim=1), torch.zeros(4), atol=1e-5)
    assert torch.allclose(found.std(dim=1, correction=0), torch.full((4,), 3.0), atol=1e-3)


def test_rows_do_not_see_each_other(rng: torch.Generator) -> None:
    denoiser = new_denoiser(0)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=0.1)
    x_t, z = torch.randn(5, 6, generator=rng), torch.randn(5, 40, generator=rng)
    t = torch.tensor([0, 10, 200, 500, 999])
    x_t.requires_grad_()
    (gradient,) = torch.autograd.grad(denoiser(x_t, t, z)[2].sum(), x_t)
    assert (gradient.abs().sum(dim=1) != 0).tolist() == [False, False, True, False, False]
