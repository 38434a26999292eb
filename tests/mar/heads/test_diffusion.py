"""The diffusion does what DDPM's and improved DDPM's equations say of normal data."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from mar.heads import diffusion


TRAINING = diffusion.training_schedule()


def rows(count: int, rng: torch.Generator, channels: int = 3) -> Tensor:
    return torch.randn(count, channels, generator=rng)


def test_alpha_bar_is_the_squared_cosine() -> None:
    def squared_cosine(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    alpha_bar = diffusion.cosine_alpha_bar(1000)
    for step in (0, 1, 250, 499, 998):
        expected = squared_cosine((step + 1) / 1000) / squared_cosine(0)
        assert float(alpha_bar[step]) == pytest.approx(expected, rel=1e-9)
    half = float(alpha_bar[495])  # u = 0.496 is where the angle is pi / 4
    assert half == pytest.approx(0.5 / squared_cosine(0), rel=1e-12)


def test_beta_is_at_most_0_999() -> None:
    alpha_bar = diffusion.cosine_alpha_bar(1000)
    assert float(alpha_bar[999] / alpha_bar[998]) == pytest.approx(0.001)
    assert float(TRAINING.beta.max()) == pytest.approx(0.999)


@pytest.mark.parametrize("num_steps", [2, 7, 100, 999])
def test_fewer_steps_keep_the_noise_levels_of_their_training_steps(num_steps: int) -> None:
    schedule = diffusion.sampling_schedule(num_steps)
    assert schedule.num_steps == num_steps
    assert schedule.timesteps[[0, -1]].tolist() == [0, 999]
    assert torch.equal(schedule.alpha_bar, TRAINING.alpha_bar[schedule.timesteps])
    assert torch.allclose((1 - schedule.beta.double()).cumprod(0).float(), schedule.alpha_bar)
    even = torch.linspace(0, 999, num_steps, dtype=torch.float64)
    assert float((schedule.timesteps - even).abs().max()) <= 0.5


def test_all_steps_are_the_training_schedule() -> None:
    schedule = diffusion.sampling_schedule(1000)
    for name, table in TRAINING.named_buffers():
        assert torch.equal(schedule.get_buffer(name), table), name


@pytest.mark.parametrize("num_steps", [1, 1001])
def test_impossible_numbers_of_steps_are_refused(num_steps: int) -> None:
    with pytest.raises(
        ValueError, match=f"diffusion sampling needs 2 to 1000 steps, got {num_steps}"
    ):
        diffusion.sampling_schedule(num_steps)


def test_added_noise_preserves_the_variance_of_standard_normal_data() -> None:
    assert torch.allclose(TRAINING.signal.square() + TRAINING.noise.square(), torch.ones(1000))


# Loss


def loss_inputs(t: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return x_0, x_t, eps, and a network's estimates eps_hat and v for steps t."""
    x_0, eps, eps_hat, v = (rows(len(t), rng) for _ in range(4))
    return x_0, diffusion.add_noise(TRAINING, x_0, t, eps), eps, eps_hat, v.tanh()


def test_the_loss_is_zero_where_the_true_posterior_is_predicted(
    rng: torch.Generator,
) -> None:
    t = torch.arange(1, 1000)
    x_0, x_t, eps, _, v = loss_inputs(t, rng)
    output = torch.cat([eps, -torch.ones_like(v)], dim=1)
    terms = diffusion.loss(TRAINING, output, x_0, x_t, t, eps)
    assert torch.equal(terms.noise, torch.zeros(999))
    assert torch.allclose(terms.variational, torch.zeros(999), atol=1e-5)


def test_the_variational_term_is_the_divergence_in_bits(rng: torch.Generator) -> None:
    t = torch.arange(1, 1000)
    x_0, x_t, eps, eps_hat, v = loss_inputs(t, rng)
    terms = diffusion.loss(TRAINING, torch.cat([eps_hat, v], dim=1), x_0, x_t, t, eps)
    x_0_hat = (x_t - TRAINING.noise[t, None] * eps_hat) / TRAINING.signal[t, None]
    true = Normal(posterior_mean(x_0, x_t, t), std(-torch.ones_like(v), t))
    nats = kl_divergence(true, Normal(posterior_mean(x_0_hat, x_t, t), std(v, t))).mean(dim=1)
    assert torch.allclose(terms.variational, nats / math.log(2), rtol=1e-4)
    assert torch.allclose(terms.noise, (eps - eps_hat).square().mean(dim=1))


def posterior_mean(x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """Return the mean of q(x_{t-1} | x_t, x_0) (DDPM, equation 7)."""
    return TRAINING.posterior_x_0[t, None] * x_0 + TRAINING.posterior_x_t[t, None] * x_t


def std(v: Tensor, t: Tensor) -> Tensor:
    """Return the std that v stands for: from the posterior's at -1 to that of beta at 1."""
    fraction = (v + 1) / 2
    lowest = TRAINING.posterior_log_variance[t, None]
    return torch.exp((fraction * TRAINING.beta.log()[t, None] + (1 - fraction) * lowest) / 2)


@pytest.mark.parametrize("x_t", [0.3, -1.0, 0.999])
def test_the_bins_of_the_last_step_hold_all_probability(x_t: float) -> None:
    centres = (torch.arange(256)[:, None] * 2 - 255) / 255  # (256, 1)
    t = torch.zeros(256, dtype=torch.int64)
    output = torch.tensor([[0.0, 0.5]]).expand(256, -1)
    fixed = torch.full_like(centres, x_t)
    bits = diffusion.loss(TRAINING, output, centres, fixed, t, centres).variational
    assert float((2**-bits).sum()) == pytest.approx(1, abs=1e-5)


def test_a_bin_of_the_last_step_is_as_likely_as_the_normal_says(
    rng: torch.Generator,
) -> None:
    t = torch.zeros(200, dtype=torch.int64)
    x_0 = rows(200, rng, channels=1).clamp(-0.9, 0.9)
    x_t = TRAINING.signal[0] * x_0 + 0.005
    output = torch.tensor([[0.0, -0.2]]).expand(200, -1)
    bits = diffusion.loss(TRAINING, output, x_0, x_t, t, torch.zeros_like(x_0)).variational
    predicted = Normal(x_t / TRAINING.signal[0], std(output[:, 1:], t))
    mass = predicted.cdf(x_0 + 1 / 255) - predicted.cdf(x_0 - 1 / 255)
    assert torch.allclose(2**-bits, mass[:, 0], atol=2e-3)  # the CDF is approximated


def test_the_variational_term_trains_the_variance_alone(rng: torch.Generator) -> None:
    t = torch.tensor([0, 1, 500, 999])
    x_0, x_t, eps, eps_hat, v = loss_inputs(t, rng)
    output = torch.cat([eps_hat, v], dim=1).requires_grad_()
    terms = diffusion.loss(TRAINING, output, x_0, x_t, t, eps)
    (variational,) = torch.autograd.grad(terms.variational.sum(), output, retain_graph=True)
    (noise,) = torch.autograd.grad(terms.noise.sum(), output)
    assert torch.equal(variational[:, :3], torch.zeros(4, 3))
    assert (variational[1:, 3:] != 0).all()  # of step 0, a likelihood near zero is clipped
    assert torch.allclose(noise[:, :3], 2 * (eps_hat - eps) / 3)
    assert torch.equal(noise[:, 3:], torch.zeros(4, 3))
