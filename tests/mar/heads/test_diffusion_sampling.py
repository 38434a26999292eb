"""A step of sampling is the equation it names, and the samplers are exact for normal data."""

from typing import Literal

import pytest
import torch
from torch import Tensor

from mar.heads import diffusion
from mar.heads.diffusion import Schedule
from mar.heads.diffusion_sampling import (
    Denoise,
    Step,
    add_step_noise,
    posterior_mean,
    predict_x_0,
    sample,
    solve,
    steps_of,
)


@pytest.fixture(scope="module")
def training_steps() -> list[Step]:
    return steps_of(diffusion.training_schedule())


def test_the_constants_of_a_step_are_those_of_the_tables(training_steps: list[Step]) -> None:
    schedule = diffusion.training_schedule()
    assert len(training_steps) == 1000
    for name in Step._fields:
        assert getattr(training_steps[7], name) == float(schedule.get_buffer(name)[7])


def test_x_0_comes_back_from_x_t_and_its_noise(
    training_steps: list[Step], rng: torch.Generator
) -> None:
    x_0, eps = torch.randn(2, 4, 3, generator=rng, dtype=torch.float64)
    for step in training_steps:
        x_t = step.signal * x_0 + step.noise * eps
        assert torch.allclose(predict_x_0(step, x_t, eps, None), x_0, atol=1e-9)
        assert torch.allclose(predict_x_0(step, x_t, eps, 0.5), x_0.clamp(-0.5, 0.5), atol=1e-9)


def test_the_posterior_obeys_bayes_rule(training_steps: list[Step], rng: torch.Generator) -> None:
    """The product of N(x_{t-1}; from x_0) and N(x_t; from x_{t-1}), completed to a square."""
    x_0, x_t = torch.randn(2, 4, 3, generator=rng, dtype=torch.float64)
    alpha_bar = diffusion.cosine_alpha_bar(1000).tolist()
    for t in range(1, 1000):
        before, alpha = alpha_bar[t - 1], alpha_bar[t] / alpha_bar[t - 1]
        precision = 1 / (1 - before) + alpha / (1 - alpha)
        product = before**0.5 * x_0 / (1 - before) + alpha**0.5 * x_t / (1 - alpha)
        found = posterior_mean(training_steps[t], x_0, x_t)
        assert torch.allclose(found, product / precision, atol=1e-5)
        spread = add_step_noise(training_steps[t], 0 * x_0, 0 * x_0 - 1, torch.ones_like(x_0), 1.0)
        assert torch.allclose(spread, torch.full_like(x_0, precision**-0.5), rtol=1e-5)


def test_the_noise_of_a_step_has_the_learned_variance(
    training_steps: list[Step], rng: torch.Generator
) -> None:
    """From the posterior's to beta; in between, the logarithm is linear in v."""
    mean, noise = torch.randn(2, 4, 3, generator=rng, dtype=torch.float64)
    for step in training_steps[1:]:
        lowest, middle, highest = (
            (add_step_noise(step, mean, torch.full_like(mean, v), noise, 0.5) - mean)
            / (0.5 * noise)
            for v in (-1.0, 0.0, 1.0)
        )
        assert torch.allclose(highest, torch.full_like(mean, step.beta**0.5))
        assert torch.allclose(middle.square(), lowest * highest)


def ideal(std: float, schedule: Schedule) -> Denoise:
    """Return the eps and v that are true of data N(0, std^2)."""
    alpha_bar = diffusion.cosine_alpha_bar(1000)[schedule.timesteps]
    spread = alpha_bar * std**2 + 1 - alpha_bar  # the variance of x_t
    before = torch.cat([torch.tensor([std**2], dtype=torch.float64), spread[:-1]])
    beta = 1 - alpha_bar / torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    log_variance = (before * beta / spread).log()  # of x_{t-1}, given x_t
    smallest = schedule.posterior_log_variance.double()
    fraction = (log_variance - smallest) / (beta.log() - smallest)
    eps_of_x_t = (1 - alpha_bar).sqrt() / spread

    def denoise(x_t: Tensor, index: int) -> tuple[Tensor, Tensor]:
        v = torch.full_like(x_t, 2 * float(fraction[index]) - 1)
        return float(eps_of_x_t[index]) * x_t, v

    return denoise


def responses(std: float, num_steps: int, temperature: float) -> Tensor:
    """Return how the result depends on x_T and on the noise of each step: it is linear in them.

    Row i is driven by the i-th of these alone, with value 1.
    """
    schedule = diffusion.sampling_schedule(num_steps)
    impulses = torch.eye(num_steps)  # x_T, then the noise of all steps but the last
    step_noise = torch.cat([impulses[1:], torch.full((1, num_steps), 1e6)])
    return sample(
        ideal(std, schedule),
        steps_of(schedule),
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
        solve(ideal(std, schedule), steps_of(schedule), x_T, order=order, x_0_bound=None).abs()
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

        def denoise(x_t: Tensor, index: int) -> tuple[Tensor, Tensor]:
            return ((1 - alpha_bar).sqrt() / spread)[index] * x_t, 0 * x_t

        x_T = torch.ones(1, 1, dtype=torch.float64)
        found = solve(denoise, steps_of(schedule), x_T, order=order, x_0_bound=None)
        x_t = (spread[0] / spread[-1]).sqrt()  # the ODE keeps x_t / its std
        return abs(float(found / (alpha_bar[0].sqrt() * std**2 / spread[0] * x_t)) - 1)

    assert error(80) / error(160) == pytest.approx(ratio, rel=0.1)


@pytest.mark.parametrize("order", [1, 2])
def test_the_learned_variance_does_not_change_a_solution(
    order: Literal[1, 2], rng: torch.Generator
) -> None:
    steps, x_T = steps_of(diffusion.sampling_schedule(6)), torch.randn(5, 3, generator=rng)

    def denoise(v: float) -> Denoise:
        return lambda x_t, _: (x_t.tanh(), torch.full_like(x_t, v))

    low, high = (solve(denoise(v), steps, x_T, order=order, x_0_bound=2.0) for v in (-1.0, 1.0))
    assert torch.equal(low, high)


@pytest.mark.parametrize("solver", ["ancestral", "ddim", "dpm++"])
@pytest.mark.parametrize("bound", [0.5, 2.0])
def test_the_bound_holds_for_any_network(solver: str, bound: float, rng: torch.Generator) -> None:
    def wild(x_t: Tensor, _: int) -> tuple[Tensor, Tensor]:
        eps, v = 30 * torch.randn(2, *x_t.shape, generator=rng).tanh()
        return eps, v

    steps = steps_of(diffusion.sampling_schedule(5))
    noise = torch.randn(6, 40, 3, generator=rng)

    def largest(x_0_bound: float | None) -> float:
        if solver == "ancestral":
            x_0 = sample(wild, steps, noise[0], noise[1:], temperature=1.0, x_0_bound=x_0_bound)
        else:
            order = 1 if solver == "ddim" else 2
            x_0 = solve(wild, steps, noise[0], order=order, x_0_bound=x_0_bound)
        return float(x_0.abs().max())

    assert largest(bound) <= bound
    assert largest(None) > 2 * bound
