"""A linear layer computes x W^T + b, whether as a product of matrices or as a convolution."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from benchmarks.train_step import Operations
from mar.linear import Linear


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def outcome(layer: Linear, x: Tensor, gradient: Tensor) -> tuple[list[Tensor], Operations]:
    x = x.clone().requires_grad_()
    layer.zero_grad()
    with Operations() as operations:
        y = layer(x)
        y.backward(gradient)
    found = [y.detach(), x.grad, layer.weight.grad, layer.bias.grad]
    return [tensor for tensor in found if tensor is not None], operations


@pytest.mark.parametrize("shape", [(4, 300), (7, 171)])
def test_a_large_layer_is_exact_forward_and_backward(
    rng: torch.Generator, shape: tuple[int, int], threads: int
) -> None:
    """Rows that do not divide into 16 images are a convolution for several threads alone."""
    layer = Linear(192, 160)
    x = torch.randn(*shape, 192, generator=rng)
    gradient = torch.randn(*shape, 160, generator=rng)
    found, operations = outcome(layer, x, gradient)
    is_convolution = threads > 1 or shape == (4, 300)
    assert operations.counts["aten::convolution"] == is_convolution
    assert operations.counts["aten::convolution_backward"] == is_convolution
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
    rows, up = x.double().flatten(0, 1), gradient.double().flatten(0, 1)
    expected = [rows @ weight.T + bias, up @ weight, up.T @ rows, up.sum(dim=0)]
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one.double(), other.view(one.shape), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("inputs", "outputs"), [(1024, 32), (32, 1024), (64, 64)])
def test_a_narrow_or_small_layer_is_a_product(inputs: int, outputs: int) -> None:
    _, operations = outcome(
        Linear(inputs, outputs), torch.ones(1024, inputs), torch.ones(1024, outputs)
    )
    assert operations.counts["aten::convolution"] == 0
    assert operations.counts["aten::addmm"] == 1
