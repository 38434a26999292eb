"""The flow's loss is that of its velocity, its solvers have their order, and it learns."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from mar.heads.base import Condition, Noise, guide
from mar.heads.denoiser import DenoiserSize
from mar.heads.flow import (
    FlowConfig,
    FlowSampler,
    RectifiedFlow,
    Solver,
    solve,
    solver_times,
)


@pytest.fixture
def head(rng: torch.Generator) -> RectifiedFlow:
    size = DenoiserSize(blocks=1, width=32)
    head = RectifiedFlow(
        FlowConfig(kind="flow", size=size, noise_samples_per_token=3, times=None),
        channels=2,
        z_width=4,
    )
    head.initialize(rng)
    return head


def moved(head: RectifiedFlow, rng: torch.Generator) -> RectifiedFlow:
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=0.1)
    return head


def sampler(num_steps: int, solver: str = "euler", temperature: float = 1.0) -> FlowSampler:
    return FlowSampler.model_validate(
        {
            "kind": "flow",
            "num_steps": num_steps,
            "final_num_steps": None,
            "annealing": "linear",
            "solver": solver,
            "temperature": temperature,
        }
    )


def noise_of(count: int, rng: torch.Generator) -> Noise:
    return Noise(torch.randn(count, 2, generator=rng), torch.zeros(0, count, 2))


def test_a_new_head_s_loss_is_the_square_of_the_velocity(
    head: RectifiedFlow, rng: torch.Generator
) -> None:
    """Its network returns zero, whatever z is."""
    z, x_0 = torch.randn(2, 5, 4, generator=rng), torch.randn(2, 5, 2, generator=rng)
    t, eps = draws = head.draw(2, 5, rng)
    assert t.shape == (2, 5, 3)
    assert 0 <= float(t.min()) < float(t.max()) < 1
    expected = (eps - x_0[:, :, None]).square().mean(dim=3)
    assert torch.allclose(head(z, x_0, draws), expected)


def test_the_network_sees_the_straight_path_between_data_and_noise(
    head: RectifiedFlow, rng: torch.Generator
) -> None:
    moved(head, rng)
    z, x_0 = torch.randn(1, 2, 4, generator=rng), torch.randn(1, 2, 2, generator=rng)
    t, eps = draws = head.draw(1, 2, rng)
    losses = head(z, x_0, draws)
    m, a = 1, 2
    x_t = (1 - t[0, m, a]) * x_0[0, m] + t[0, m, a] * eps[0, m, a]
    velocity = head.denoiser(x_t[None], 1000 * t[0, m, a][None], z[0, m][None])[0]
    expected = (velocity - (eps[0, m, a] - x_0[0, m])).square().mean()
    assert torch.allclose(losses[0, m, a], expected, rtol=1e-4)


STD = 0.3


def velocity_of_normal_data(x: Tensor, t: float) -> Tensor:
    """E[eps - x_0 | x_t = x] for x_0 of N(0, STD^2) and x_t = (1 - t) x_0 + t eps."""
    return x * (t - (1 - t) * STD**2) / ((1 - t) ** 2 * STD**2 + t**2)


def solver_error(num_steps: int, solver: Solver) -> float:
    """The relative error of x at t = 0, which the exact flow takes to STD times the start."""
    start = torch.ones(1, 1, dtype=torch.float64)
    times = solver_times(num_steps, solver, torch.device("cpu")).double()

    def velocity(x: Tensor, time: int) -> Tensor:
        return velocity_of_normal_data(x, float(times[time]))

    x_0 = solve(velocity, start, num_steps=num_steps, solver=solver)
    return abs(float(x_0) - STD) / STD


@pytest.mark.parametrize(
    ("solver", "order"), [("euler", 1), ("adams", 2), ("heun", 2), ("midpoint", 2)]
)
def test_solvers_converge_with_their_order_to_normal_data(solver: Solver, order: int) -> None:
    """The midpoint's error falls even faster: the velocity is linear in x."""
    fine, coarse = solver_error(400, solver), solver_error(200, solver)
    assert fine < 0.01
    assert coarse / fine > 0.85 * 2**order


@pytest.mark.parametrize(("solver", "calls"), [("euler", 7), ("adams", 7), ("heun", 14)])
def test_adams_calls_the_network_as_often_as_euler(solver: Solver, calls: int) -> None:
    times: list[int] = []

    def velocity(x: Tensor, time: int) -> Tensor:
        times.append(time)
        return x

    solve(velocity, torch.ones(1, 1), num_steps=7, solver=solver)
    assert len(times) == calls
    assert (times[0], max(times)) == (0, 7 if solver == "heun" else 6)


@pytest.mark.parametrize("solver", get_args(Solver))
def test_samples_are_those_of_the_network_itself(
    head: RectifiedFlow, rng: torch.Generator, solver: Solver
) -> None:
    """Each call with its time and both branches of guidance, nothing computed ahead."""
    moved(head, rng)
    z, noise = torch.randn(6, 4, generator=rng), noise_of(6, rng)

    def velocity(x: Tensor, time: int) -> Tensor:
        t = torch.tensor(1 - time / (10 if solver == "midpoint" else 5)).expand(6)
        null, given = (head.denoiser(x, 1000 * t, rows) for rows in (z.flip(0), z))
        return guide(null, given, 2.5)

    with torch.no_grad():
        expected = solve(velocity, 0.9 * noise.initial, num_steps=5, solver=solver)
    found = head.sample(Condition(z, z.flip(0), 2.5), noise, sampler(5, solver, 0.9))
    assert torch.allclose(found, expected, atol=1e-5)


def test_guidance_of_one_is_no_guidance(head: RectifiedFlow, rng: torch.Generator) -> None:
    moved(head, rng)
    z, noise = torch.randn(6, 4, generator=rng), noise_of(6, rng)
    plain = head.sample(Condition(z), noise, sampler(5))
    one = head.sample(Condition(z, z.flip(0), 1.0), noise, sampler(5))
    assert torch.allclose(one, plain, atol=1e-5)
    strong = head.sample(Condition(z, z.flip(0), 4.0), noise, sampler(5))
    assert not torch.allclose(strong, plain, atol=0.1)


def test_temperature_scales_the_start(head: RectifiedFlow, rng: torch.Generator) -> None:
    z, noise = torch.zeros(6, 4), noise_of(6, rng)  # a new network's velocity is zero
    assert torch.equal(
        head.sample(Condition(z), noise, sampler(3, "heun", 0.5)), 0.5 * noise.initial
    )


def test_two_clusters_are_learnt_by_their_condition(
    head: RectifiedFlow, rng: torch.Generator
) -> None:
    centres = torch.tensor([[2.0, -1.0], [-1.0, 3.0]])
    z = torch.eye(4)[:2].repeat(32, 1)[None]  # (1, 64, 4)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for _ in range(150):
        data: Tensor = centres.repeat(32, 1) + 0.1 * torch.randn(64, 2, generator=rng)
        loss = head(z, data[None], head.draw(1, 64, rng)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn = head.sample(Condition(z[0]), noise_of(64, rng), sampler(8, "heun"))
    assert float((drawn - centres.repeat(32, 1)).norm(dim=1).mean()) < 0.5
