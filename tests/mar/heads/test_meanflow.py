"""MeanFlow's loss has the exact derivative, its samples are steps along it, and it learns."""

from collections.abc import Generator

import jaxtyping
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from mar.heads.base import Condition, Noise, guide
from mar.heads.denoiser import DenoiserSize
from mar.heads.meanflow import SMALLEST, MeanFlow, MeanFlowConfig, MeanFlowSampler
from mar.model.compilation import compile_blocks


def new_head(rng: torch.Generator, draws: int = 4, width: int = 32) -> MeanFlow:
    config = MeanFlowConfig(
        kind="meanflow",
        size=DenoiserSize(blocks=1, width=width),
        noise_samples_per_token=draws,
        times=None,
    )
    head = MeanFlow(config, channels=2, z_width=4)
    head.initialize(rng)
    return head


@pytest.fixture
def without_shape_checks() -> Generator[None]:
    """Leave out jaxtyping's checks, which a graph cannot hold and which programs are without."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def head(rng: torch.Generator) -> MeanFlow:
    """Return a head whose network depends on everything."""
    head = new_head(rng)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=0.1)
    return head


def sampler(num_steps: int, temperature: float = 1.0) -> MeanFlowSampler:
    return MeanFlowSampler(
        kind="meanflow",
        num_steps=num_steps,
        final_num_steps=None,
        annealing="linear",
        temperature=temperature,
    )


def noise_of(count: int, rng: torch.Generator) -> Noise:
    return Noise(torch.randn(count, 2, generator=rng), torch.zeros(0, count, 2))


def test_half_of_the_draws_are_of_the_velocity_and_half_of_a_span(rng: torch.Generator) -> None:
    r, t, eps = new_head(rng).draw(8, 5, rng)
    assert r.shape == t.shape == (8, 5, 4)
    assert eps.shape == (8, 5, 4, 2)
    assert torch.equal(r[:, :, :2], t[:, :, :2])
    assert bool((r < t)[:, :, 2:].all())


def test_draws_that_cannot_be_halved_are_refused(rng: torch.Generator) -> None:
    with pytest.raises(ValidationError, match="noise_samples_per_token"):
        new_head(rng, draws=3)


def squared_errors(head: MeanFlow, z: Tensor, x_0: Tensor, draws: tuple[Tensor, ...]) -> Tensor:
    """Return those of u, with finite differences along the path in place of the derivative."""
    r, t, eps = (each.flatten(0, 2) for each in draws)
    data = x_0[:, :, None].expand(-1, -1, 4, -1).flatten(0, 2)
    y = head.denoiser.embed_z(z)[:, :, None].expand(-1, -1, 4, -1).flatten(0, 2)

    def u(t: Tensor, path: Tensor) -> Tensor:
        return head.average_velocity(path, t, t - r, y)

    velocity, step = eps - data, 1e-2
    x_t = (1 - t)[:, None] * data + t[:, None] * eps
    ahead, behind = (u(t + h, x_t + h * velocity) for h in (step, -step))
    target = velocity - (t - r)[:, None] * (ahead - behind) / (2 * step)
    return (u(t, x_t) - target).square().sum(dim=1)


def test_the_loss_is_that_of_the_mean_flow_identity(head: MeanFlow, rng: torch.Generator) -> None:
    z, x_0 = torch.randn(2, 5, 4, generator=rng), torch.randn(2, 5, 2, generator=rng)
    draws = head.draw(2, 5, rng)
    with torch.no_grad():
        expected = squared_errors(head, z, x_0, draws) + SMALLEST
    found = head(z, x_0, draws)
    assert torch.allclose(found.flatten().exp(), expected, rtol=1e-3, atol=1e-2)


@pytest.mark.usefixtures("without_shape_checks")
def test_compiled_blocks_have_the_same_loss(head: MeanFlow, rng: torch.Generator) -> None:
    """Their forward derivative, which torch does not compile, is taken without compilation."""
    z, x_0 = torch.randn(2, 5, 4, generator=rng), torch.randn(2, 5, 2, generator=rng)
    draws = head.draw(2, 5, rng)
    with torch.no_grad():
        expected = head(z, x_0, draws)
        compile_blocks(head, backend="aot_eager")
        assert torch.allclose(head(z, x_0, draws), expected, atol=1e-5)


def test_samples_are_those_of_the_network_itself(head: MeanFlow, rng: torch.Generator) -> None:
    """Each step with its time and span and both branches of guidance, nothing computed ahead."""
    z, noise = torch.randn(6, 4, generator=rng), noise_of(6, rng)
    expected = 0.9 * noise.initial
    with torch.no_grad():
        for time in (1.0, 0.75, 0.5, 0.25):
            times = torch.full((6,), time), torch.full((6,), 0.25)
            null, given = (
                head.average_velocity(expected, *times, head.denoiser.embed_z(rows))
                for rows in (z.flip(0), z)
            )
            expected = expected - guide(null, given, 2.5) / 4
    found = head.sample(Condition(z, z.flip(0), 2.5), noise, sampler(4, 0.9))
    assert torch.allclose(found, expected, atol=1e-5)


def test_one_evaluation_draws_two_clusters_by_their_condition(rng: torch.Generator) -> None:
    head = new_head(rng)
    centres = torch.tensor([[2.0, -1.0], [-1.0, 3.0]])
    z = torch.eye(4)[:2].repeat(32, 1)[None]  # (1, 64, 4)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(80):
        data: Tensor = centres.repeat(32, 1) + 0.1 * torch.randn(64, 2, generator=rng)
        loss = head(z, data[None], head.draw(1, 64, rng)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn = head.sample(Condition(z[0]), noise_of(64, rng), sampler(1))
    assert float((drawn - centres.repeat(32, 1)).norm(dim=1).mean()) < 0.5
