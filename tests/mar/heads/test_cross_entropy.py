"""Codes are drawn with the probabilities of their logits, of which the loss is the likelihood."""

from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mar.heads.base import Condition, Noise
from mar.heads.cross_entropy import (
    ROWS,
    CrossEntropy,
    CrossEntropyConfig,
    CrossEntropySampler,
    invert_cdf,
)


@pytest.fixture
def head(rng: torch.Generator) -> CrossEntropy:
    head = CrossEntropy(CrossEntropyConfig(kind="cross_entropy"), channels=7, z_width=4)
    head.initialize(rng)
    return head


def sampler(temperature: float = 1.0) -> CrossEntropySampler:
    return CrossEntropySampler(kind="cross_entropy", temperature=temperature)


def noise_of(count: int, rng: torch.Generator) -> Noise:
    return Noise(torch.randn(count, 1, generator=rng), torch.zeros(0, count, 1))


def test_the_loss_is_the_negative_log_likelihood(head: CrossEntropy, rng: torch.Generator) -> None:
    z = torch.randn(2, 3, 4, generator=rng)
    codes = torch.tensor([[0, 6, 2], [1, 1, 5]])[:, :, None]
    probabilities = head.probabilities(Condition(z.flatten(0, 1)), sampler()).gather(
        1, codes.flatten(0, 1)
    )
    loss = head(z, codes, head.draw(2, 3, rng))
    assert loss.shape == (2, 3, 1)
    assert torch.allclose(loss.double().flatten(), -probabilities.log().flatten(), rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_codes_are_drawn_with_their_probabilities(
    head: CrossEntropy, rng: torch.Generator, temperature: float
) -> None:
    z = torch.randn(1, 4, generator=rng)
    expected = (head.linear(z).double() / temperature).softmax(dim=1)[0].detach()
    codes = head.sample(Condition(z.expand(5000, -1)), noise_of(5000, rng), sampler(temperature))
    counts = codes.flatten().bincount(minlength=7)
    assert stats.chisquare(counts.numpy(), (5000 * expected).numpy()).pvalue > 1e-5


def test_a_cold_draw_is_the_likeliest_code(head: CrossEntropy, rng: torch.Generator) -> None:
    z = torch.randn(50, 4, generator=rng)
    codes = head.sample(Condition(z), noise_of(50, rng), sampler(1e-6))
    assert torch.equal(codes.flatten(), head.linear(z).argmax(dim=1))


@pytest.mark.parametrize("extreme", [-40.0, 40.0])
def test_extreme_noise_draws_a_code_nevertheless(head: CrossEntropy, extreme: float) -> None:
    noise = Noise(torch.full((3, 1), extreme), torch.zeros(0, 3, 1))
    codes = head.sample(Condition(torch.zeros(3, 4)), noise, sampler())
    assert codes.flatten().tolist() == [0 if extreme < 0 else 6] * 3


def test_guidance_combines_the_logits(head: CrossEntropy, rng: torch.Generator) -> None:
    z, z_null = torch.randn(2, 5, 4, generator=rng)

    def guided(scale: float) -> Tensor:
        return head.probabilities(Condition(z, z_null, scale), sampler())

    assert torch.allclose(guided(1.0), head.probabilities(Condition(z), sampler()))
    assert torch.allclose(guided(0.0), head.probabilities(Condition(z_null), sampler()))
    logits = 3 * head.linear(z) - 2 * head.linear(z_null)
    assert torch.allclose(guided(3.0), logits.double().softmax(dim=1), atol=1e-6)


def test_a_code_comes_with_its_probability(head: CrossEntropy, rng: torch.Generator) -> None:
    z, z_null = torch.randn(2, 50, 4, generator=rng)
    condition, noise = Condition(z, z_null, 2.0), noise_of(50, rng)
    drawn = head.sample_with_probability(condition, noise, sampler())
    expected = head.probabilities(condition, sampler())
    assert torch.equal(drawn.tokens, head.sample(condition, noise, sampler()))
    assert torch.allclose(drawn.probability, expected.gather(1, drawn.tokens))


class Largest(TorchDispatchMode):
    """Notes the most numbers in a tensor that is made."""

    numbers = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


def test_distributions_are_held_for_some_rows_at_a_time(rng: torch.Generator) -> None:
    head = CrossEntropy(CrossEntropyConfig(kind="cross_entropy"), channels=64, z_width=4)
    head.initialize(rng)
    z, z_null = torch.randn(2, 2 * ROWS + 50, 4, generator=rng)
    condition, noise = Condition(z, z_null, 2.0), noise_of(len(z), rng)
    with Largest() as largest:
        drawn = head.sample_with_probability(condition, noise, sampler())
    assert largest.numbers == ROWS * 64  # codes
    together = head.probabilities(condition, sampler())
    assert torch.equal(drawn.tokens, invert_cdf(together, noise.initial))
    assert torch.allclose(drawn.probability, together.gather(1, drawn.tokens))


def test_a_device_without_float64_draws_the_same_codes(rng: torch.Generator) -> None:
    probabilities = torch.randn(500, 64, generator=rng, dtype=torch.float64).softmax(dim=1)
    normal = torch.randn(500, 1, generator=rng)
    codes = invert_cdf(probabilities, normal)
    assert len(codes.unique()) > 32
    assert torch.equal(invert_cdf(probabilities.float(), normal), codes)
