"""The head's loss is the diffusion's for each token and draw, and its guidance combines eps."""

import re
from typing import Any, Literal

import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from torch import Tensor

from mar.heads import diffusion, diffusion_sampling
from mar.heads.base import Condition, Noise
from mar.heads.diffusion_loss import DiffusionLoss, DiffusionSampler
from mar.model.mar import MAR


SAMPLER = DiffusionSampler(
    kind="diffusion",
    num_steps=6,
    final_num_steps=None,
    annealing="linear",
    solver="ancestral",
    temperature=1.0,
    x_0_bound=None,
    precision="float32",
)


def with_solver(solver: str, **changes: Any) -> DiffusionSampler:
    fields = {**SAMPLER.model_dump(), "solver": solver, "x_0_bound": 3.0, **changes}
    return DiffusionSampler.model_validate(fields)


@pytest.fixture
def head(tiny_model: MAR) -> DiffusionLoss:
    assert isinstance(tiny_model.head, DiffusionLoss)
    return tiny_model.head


@pytest.fixture
def z(rng: torch.Generator) -> Tensor:
    return torch.randn(10, 24, generator=rng)


@pytest.fixture
def noise(rng: torch.Generator) -> Noise:
    drawn = torch.randn(7, 10, 8, generator=rng)
    return Noise(drawn[0], drawn[1:])


def test_each_token_and_draw_has_the_loss_it_has_alone(
    head: DiffusionLoss, rng: torch.Generator
) -> None:
    z, x_0 = torch.randn(2, 3, 24, generator=rng), torch.randn(2, 3, 8, generator=rng)
    t, eps = draws = head.draw(2, 3, rng)
    losses = head(z, x_0, draws)
    for place in [(0, 0, 0), (0, 2, 1), (1, 0, 1), (1, 2, 0)]:
        b, m, _a = place
        one_t, one_eps = t[place][None], eps[place][None]
        x_t = diffusion.add_noise(head.schedule, x_0[b, m][None], one_t, one_eps)
        output = head.denoiser(x_t, one_t, z[b, m][None])
        terms = diffusion.loss(head.schedule, output, x_0[b, m][None], x_t, one_t, one_eps)
        assert torch.allclose(losses[place], terms.noise + terms.variational, rtol=1e-4)


def test_draws_are_uniform_steps_and_standard_normal_noise(
    head: DiffusionLoss, rng: torch.Generator
) -> None:
    t, eps = head.draw(40, 50, rng)
    assert t.shape == (40, 50, 2)
    assert stats.chisquare((t.flatten() // 100).bincount().numpy()).pvalue > 1e-5
    assert (int(t.min()), int(t.max())) == (0, 999)
    assert stats.kstest(eps[:, :, :, 0].flatten().numpy(), "norm").pvalue > 1e-5
    assert float((t[:, :, 0] == t[:, :, 1]).float().mean()) < 0.01


def test_a_token_s_loss_trains_its_own_z_alone(head: DiffusionLoss, rng: torch.Generator) -> None:
    z = torch.randn(1, 4, 24, generator=rng).requires_grad_()
    x_0 = torch.randn(1, 4, 8, generator=rng)
    head(z, x_0, head.draw(1, 4, rng))[0, 1].sum().backward()
    assert z.grad is not None
    assert (z.grad[0].abs().sum(dim=1) != 0).tolist() == [False, True, False, False]


@pytest.mark.parametrize("solver", ["ancestral", "ddim", "dpm++"])
def test_guidance_of_one_is_no_guidance(
    head: DiffusionLoss, z: Tensor, noise: Noise, solver: str
) -> None:
    sampler = with_solver(solver)
    guided = head.sample(Condition(z, z.flip(0), 1.0), noise, sampler)
    assert torch.allclose(guided, head.sample(Condition(z), noise, sampler), atol=1e-5)


def test_guidance_towards_the_same_condition_changes_nothing(
    head: DiffusionLoss, z: Tensor, noise: Noise
) -> None:
    guided = head.sample(Condition(z, z, 4.0), noise, SAMPLER)
    plain = head.sample(Condition(z), noise, SAMPLER)
    assert torch.allclose(guided, plain, rtol=1e-3, atol=1e-4)


def test_guidance_combines_eps_and_keeps_the_variance_of_the_class(
    head: DiffusionLoss, z: Tensor, noise: Noise
) -> None:
    z_null = z.flip(0)

    def combined(x_t: Tensor, index: int) -> tuple[Tensor, Tensor]:
        t = schedule.timesteps[index].expand(10)
        eps, v = head.denoiser(x_t, t, z).chunk(2, dim=1)
        eps_null, _ = head.denoiser(x_t, t, z_null).chunk(2, dim=1)
        return -1.5 * eps_null + 2.5 * eps, v

    schedule = diffusion.sampling_schedule(6)
    expected = diffusion_sampling.sample(
        combined, diffusion_sampling.steps_of(schedule), *noise, temperature=0.9, x_0_bound=3.0
    )
    guided = head.sample(
        Condition(z, z_null, 2.5),
        noise,
        SAMPLER.model_copy(update={"temperature": 0.9, "x_0_bound": 3.0}),
    )
    assert torch.allclose(guided, expected, atol=1e-4)
    assert not torch.allclose(guided, head.sample(Condition(z), noise, SAMPLER), atol=0.1)


def test_a_row_is_drawn_as_it_is_alone(head: DiffusionLoss, z: Tensor, noise: Noise) -> None:
    together = head.sample(Condition(z), noise, SAMPLER)
    alone = Noise(noise.initial[4:5], noise.steps[:, 4:5])
    assert torch.allclose(head.sample(Condition(z[4:5]), alone, SAMPLER), together[4:5], atol=1e-5)


# Solvers without noise


@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("dpm++", 2)])
def test_solvers_see_the_guided_eps(
    head: DiffusionLoss, z: Tensor, noise: Noise, solver: str, order: Literal[1, 2]
) -> None:
    z_null = z.flip(0)

    def combined(x_t: Tensor, index: int) -> tuple[Tensor, Tensor]:
        t = schedule.timesteps[index].expand(10)
        eps, v = head.denoiser(x_t, t, z).chunk(2, dim=1)
        eps_null, _ = head.denoiser(x_t, t, z_null).chunk(2, dim=1)
        return -1.5 * eps_null + 2.5 * eps, v

    schedule = diffusion.sampling_schedule(6)
    steps = diffusion_sampling.steps_of(schedule)
    expected = diffusion_sampling.solve(combined, steps, noise.initial, order=order, x_0_bound=3.0)
    guided = head.sample(Condition(z, z_null, 2.5), noise, with_solver(solver))
    assert torch.allclose(guided, expected, atol=1e-4)
    plain = head.sample(Condition(z), noise, with_solver(solver))
    assert not torch.allclose(guided, plain, atol=0.1)


def test_solvers_differ_and_depend_on_the_initial_noise_alone(
    head: DiffusionLoss, z: Tensor, noise: Noise
) -> None:
    drawn: list[Tensor] = []
    for solver in ("ddim", "dpm++"):
        sampler = with_solver(solver)
        assert sampler.num_noises == 0
        without = Noise(noise.initial, noise.steps[:0])
        drawn.append(head.sample(Condition(z), noise, sampler))
        assert torch.equal(head.sample(Condition(z), without, sampler), drawn[-1])
        other = Noise(-noise.initial, noise.steps)
        assert not torch.allclose(head.sample(Condition(z), other, sampler), drawn[-1], atol=0.1)
    assert not torch.allclose(drawn[0], drawn[1], atol=1e-3)
    ancestral = head.sample(Condition(z), noise, with_solver("ancestral"))
    assert not torch.allclose(ancestral, drawn[0], atol=0.1)


@pytest.mark.parametrize("solver", ["ddim", "dpm++"])
def test_a_temperature_is_refused_where_no_noise_is_added(solver: str) -> None:
    expected = rf"must be 1 where sample\.head\.solver is {re.escape(solver)}, which adds no noise"
    with pytest.raises(ValidationError, match=expected) as caught:
        with_solver(solver, temperature=0.9)
    (problem,) = caught.value.errors()
    assert problem["loc"] == ("temperature",)
    assert with_solver("ancestral", temperature=0.9).temperature == 0.9
