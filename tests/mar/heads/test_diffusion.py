"""The diffusion does what DDPM's and improved DDPM's equations say of normal data."""

import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal as TorchNormal
from torch.distributions import kl_divergence

from mar.heads import diffusion
from mar.heads.diffusion import Normal, Schedule


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


def test_x_0_comes_back_from_x_t_and_its_noise(rng: torch.Generator) -> None:
    schedule = diffusion.training_schedule().double()
    t = torch.arange(1000)
    x_0, eps = rows(1000, rng).double(), rows(1000, rng).double()
    x_t = diffusion.add_noise(schedule, x_0, t, eps)
    assert torch.allclose(diffusion.predict_x_0(schedule, x_t, t, eps), x_0, atol=1e-9)


def test_added_noise_preserves_the_variance_of_standard_normal_data() -> None:
    assert torch.allclose(TRAINING.signal.square() + TRAINING.noise.square(), torch.ones(1000))


def test_the_posterior_obeys_bayes_rule(rng: torch.Generator) -> None:
    """The product of N(x_{t-1}; from x_0) and N(x_t; from x_{t-1}), completed to a square."""
    t = torch.arange(1, 1000)
    x_0, x_t = rows(999, rng).double(), rows(999, rng).double()
    alpha_bar = diffusion.cosine_alpha_bar(1000)[:, None]
    before, alpha = alpha_bar[t - 1], alpha_bar[t] / alpha_bar[t - 1]
    precision = 1 / (1 - before) + alpha / (1 - alpha)
    mean = (before.sqrt() * x_0 / (1 - before) + alpha.sqrt() * x_t / (1 - alpha)) / precision
    ours = diffusion.posterior(TRAINING, x_0, x_t, t)
    assert torch.allclose(ours.mean, mean, atol=1e-5)
    assert torch.allclose(ours.log_variance.double(), -precision.log(), atol=1e-5)


def test_the_variance_runs_from_the_posterior_s_to_beta() -> None:
    t = torch.arange(1, 1000)
    ones = torch.ones(999, 1)
    lowest = diffusion.learned_log_variance(TRAINING, -ones, t).exp()
    middle = diffusion.learned_log_variance(TRAINING, 0 * ones, t).exp()
    highest = diffusion.learned_log_variance(TRAINING, ones, t).exp()
    assert torch.allclose(lowest[:, 0], TRAINING.posterior_variance[1:])
    assert torch.allclose(highest[:, 0], TRAINING.beta[1:])
    assert torch.allclose(middle.square(), lowest * highest, rtol=1e-4)


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
    true = diffusion.posterior(TRAINING, x_0, x_t, t)
    x_0_hat = diffusion.predict_x_0(TRAINING, x_t, t, eps_hat)
    mean = diffusion.posterior(TRAINING, x_0_hat, x_t, t).mean
    predicted = Normal(mean, diffusion.learned_log_variance(TRAINING, v, t))
    nats = kl_divergence(as_distribution(true), as_distribution(predicted)).mean(dim=1)
    assert torch.allclose(terms.variational, nats / math.log(2), rtol=1e-4)
    assert torch.allclose(terms.noise, (eps - eps_hat).square().mean(dim=1))


def as_distribution(normal: Normal) -> TorchNormal:
    return TorchNormal(normal.mean, torch.exp(0.5 * normal.log_variance))


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
    log_variance = diffusion.learned_log_variance(TRAINING, output[:, 1:], t)
    predicted = as_distribution(Normal(x_t / TRAINING.signal[0], log_variance))
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


# Sampler


def ideal(std: float, schedule: Schedule) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the eps and v that are true of data N(0, std^2)."""
    alpha_bar = diffusion.cosine_alpha_bar(1000)[schedule.timesteps]
    spread = alpha_bar * std**2 + 1 - alpha_bar  # the variance of x_t
    before = torch.cat([torch.tensor([std**2], dtype=torch.float64), spread[:-1]])
    beta = 1 - alpha_bar / torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    log_variance = (before * beta / spread).log()  # of x_{t-1}, given x_t
    smallest = schedule.posterior_log_variance.double()
    fraction = (log_variance - smallest) / (beta.log() - smallest)
    eps_of_x_t = (1 - alpha_bar).sqrt() / spread

    def denoise(x_t: Tensor, timestep: Tensor) -> Tensor:
        index = int((schedule.timesteps == timestep).nonzero())
        v = torch.full_like(x_t, 2 * float(fraction[index]) - 1)
        return torch.cat([float(eps_of_x_t[index]) * x_t, v], dim=1)

    return denoise


def responses(std: float, num_steps: int, temperature: float) -> Tensor:
    """Return how the result depends on x_T and on the noise of each step: it is linear in them.

    Row i is driven by the i-th of these alone, with value 1.
    """
    schedule = diffusion.sampling_schedule(num_steps)
    impulses = torch.eye(num_steps)  # x_T, then the noise of all steps but the last
    step_noise = torch.cat([impulses[1:], torch.full((1, num_steps), 1e6)])
    return diffusion.sample(
        ideal(std, schedule),
        schedule,
        impulses[0][:, None],
        step_noise[:, :, None],
        temperature=temperature,
        x_0_bound=None,
    )[:, 0]


@pytest.mark.parametrize("num_steps", [10, 50, 100, 400])
@pytest.mark.parametrize("std", [0.25, 1.0, 3.0])
def test_the_ideal_denoiser_returns_the_std_of_the_data(std: float, num_steps: int) -> None:
    assert float(responses(std, num_steps, 1.0).norm()) == pytest.approx(std, rel=1e-3)


def test_temperature_scales_the_noise_of_each_step_and_nothing_else() -> None:
    hot, cold, none = (responses(0.5, 20, temperature) for temperature in (1.0, 0.3, 0.0))
    assert float(hot[0]) == float(cold[0]) == float(none[0])
    assert torch.allclose(cold[1:], 0.3 * hot[1:])
    assert torch.equal(none[1:], torch.zeros(19))


# Solvers of the ODE


def solved_std(std: float, num_steps: int, order: Literal[1, 2]) -> float:
    """Return the std that the ideal denoiser's samples have: the result is linear in x_T."""
    schedule = diffusion.sampling_schedule(num_steps).double()
    x_T = torch.ones(1, 1, dtype=torch.float64)
    return float(
        diffusion.solve(ideal(std, schedule), schedule, x_T, order=order, x_0_bound=None).abs()
    )


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("std", [0.25, 1.0, 3.0])
def test_all_steps_of_a_solver_return_the_std_of_the_data(std: float, order: Literal[1, 2]) -> None:
    """The exact solution is x_T times the std of the data, over that of x_T, which is 1."""
    assert solved_std(std, 1000, order) == pytest.approx(std, rel=0.004 / order**2)


@pytest.mark.parametrize("std", [0.25, 1.0, 3.0])
def test_the_error_of_ddim_halves_with_the_steps(std: float) -> None:
    errors = [abs(solved_std(std, num_steps, 1) - std) for num_steps in (20, 40, 80)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("std", [0.25, 1.0, 3.0])
def test_order_2_needs_fewer_steps_than_order_1(std: float) -> None:
    for num_steps in (20, 40, 80):
        first, second = (abs(solved_std(std, num_steps, order) - std) for order in (1, 2))
        assert second < first / 2
    assert abs(solved_std(std, 20, 2) - std) > 6 * abs(solved_std(std, 80, 2) - std)


@pytest.mark.parametrize(("order", "ratio"), [(1, 2), (2, 4)])
@pytest.mark.parametrize("std", [0.5, 2.0])
def test_solvers_have_their_order_in_the_log_signal_to_noise_ratio(
    std: float, order: Literal[1, 2], ratio: float
) -> None:
    """On even steps of lambda, from -2 to 3, against the closed form; then x_0 is predicted."""

    def error(num_steps: int) -> float:
        half_log_snr = torch.linspace(3, -2, num_steps, dtype=torch.float64)
        alpha_bar = torch.sigmoid(2 * half_log_snr)
        schedule = Schedule(alpha_bar, torch.arange(num_steps)).double()
        spread = alpha_bar * std**2 + 1 - alpha_bar  # the variance of x_t

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            eps = ((1 - alpha_bar).sqrt() / spread)[t] * x_t
            return torch.cat([eps.double(), 0 * x_t], dim=1)

        x_T = torch.ones(1, 1, dtype=torch.float64)
        found = diffusion.solve(denoise, schedule, x_T, order=order, x_0_bound=None)
        x_t = (spread[0] / spread[-1]).sqrt()  # the ODE keeps x_t / its std
        return abs(float(found / (alpha_bar[0].sqrt() * std**2 / spread[0] * x_t)) - 1)

    assert error(80) / error(160) == pytest.approx(ratio, rel=0.1)


@pytest.mark.parametrize("order", [1, 2])
def test_the_learned_variance_does_not_change_a_solution(
    order: Literal[1, 2], rng: torch.Generator
) -> None:
    schedule, x_T = diffusion.sampling_schedule(6), rows(5, rng)

    def denoise(v: float) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x_t, _: torch.cat([x_t.tanh(), torch.full_like(x_t, v)], dim=1)

    low, high = (
        diffusion.solve(denoise(v), schedule, x_T, order=order, x_0_bound=2.0) for v in (-1.0, 1.0)
    )
    assert torch.equal(low, high)


@pytest.mark.parametrize("solver", ["ancestral", "ddim", "dpm++"])
@pytest.mark.parametrize("bound", [0.5, 2.0])
def test_the_bound_holds_for_any_network(solver: str, bound: float, rng: torch.Generator) -> None:
    def wild(x_t: Tensor, _: Tensor) -> Tensor:
        return 30 * torch.randn(len(x_t), 6, generator=rng).tanh()

    schedule = diffusion.sampling_schedule(5)
    noise = torch.randn(6, 40, 3, generator=rng)

    def largest(x_0_bound: float | None) -> float:
        if solver == "ancestral":
            x_0 = diffusion.sample(
                wild, schedule, noise[0], noise[1:], temperature=1.0, x_0_bound=x_0_bound
            )
        else:
            order = 1 if solver == "ddim" else 2
            x_0 = diffusion.solve(wild, schedule, noise[0], order=order, x_0_bound=x_0_bound)
        return float(x_0.abs().max())

    assert largest(bound) <= bound
    assert largest(None) > 2 * bound
