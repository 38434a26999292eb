"""The tokenizer's output is a normal distribution, and its divergence is that of one."""

import torch
from torch.distributions import Normal, kl_divergence

from mar.latents.posterior import Posterior


def moments(rng: torch.Generator) -> torch.Tensor:
    return 2 * torch.randn(3, 8, 2, 5, generator=rng)


def test_moments_are_means_then_log_variances_within_their_bounds() -> None:
    given = torch.tensor([1.0, -2.0, -99.0, 99.0]).reshape(1, 4, 1, 1)
    posterior = Posterior.of(given, 2)
    assert posterior.mean.flatten().tolist() == [1, -2]
    assert posterior.log_variance is not None
    assert posterior.log_variance.flatten().tolist() == [-30, 20]


def test_the_divergence_is_that_from_a_standard_normal(rng: torch.Generator) -> None:
    posterior = Posterior.of(moments(rng), 4)
    assert posterior.log_variance is not None
    ours = Normal(posterior.mean, torch.exp(0.5 * posterior.log_variance))
    expected = kl_divergence(ours, Normal(0.0, 1.0)).sum(dim=(1, 2, 3))
    assert torch.allclose(posterior.kl(), expected, rtol=1e-4)


def test_a_standard_normal_does_not_diverge() -> None:
    assert torch.equal(Posterior.of(torch.zeros(2, 8, 3, 3), 4).kl(), torch.zeros(2))


def test_samples_have_the_mean_and_the_variance(rng: torch.Generator) -> None:
    posterior = Posterior.of(moments(rng), 4)
    assert posterior.log_variance is not None
    eps = torch.tensor(1.5).expand(posterior.mean.shape)
    standardised = (posterior.sample(eps) - posterior.mean).square() / posterior.log_variance.exp()
    assert torch.allclose(standardised, eps.square(), rtol=1e-3)


def test_half_precision_moments_are_read_in_full(rng: torch.Generator) -> None:
    given = moments(rng).bfloat16()
    assert torch.equal(Posterior.of(given, 4).kl(), Posterior.of(given.float(), 4).kl())


def test_moments_of_as_many_channels_as_latents_have_no_variance(
    rng: torch.Generator,
) -> None:
    given = moments(rng).half()
    posterior = Posterior.of(given, 8)
    assert posterior.log_variance is None
    assert torch.equal(posterior.mean, given.float())
    eps = torch.randn(given.shape, generator=rng)
    assert torch.equal(posterior.sample(eps), posterior.mean)
