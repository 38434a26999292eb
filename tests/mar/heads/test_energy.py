"""The energy score is least for the true distribution, and the head learns one by it."""

import pytest
import torch

from mar.heads.base import Condition, Noise
from mar.heads.denoiser import DenoiserSize
from mar.heads.energy import EnergyConfig, EnergyHead, EnergySampler, energy_score


SAMPLER = EnergySampler(kind="energy", temperature=1.0)


@pytest.fixture
def head(rng: torch.Generator) -> EnergyHead:
    size = DenoiserSize(blocks=1, width=32)
    config = EnergyConfig(kind="energy", size=size, noise_samples_per_token=4, alpha=1.0)
    head = EnergyHead(config, channels=2, z_width=4)
    head.initialize(rng)
    return head


def noise_of(count: int, rng: torch.Generator) -> Noise:
    initial, other = torch.randn(2, count, 2, generator=rng)
    return Noise(initial, other[None])


def test_the_score_is_that_of_its_definition(rng: torch.Generator) -> None:
    samples, x_0 = torch.randn(1, 1, 3, 2, generator=rng), torch.randn(1, 1, 2, generator=rng)
    for alpha in (0.5, 1.0, 1.5):
        near = sum(float((x - x_0[0, 0]).norm()) ** alpha for x in samples[0, 0]) / 3
        a, b, c = samples[0, 0]
        far = sum(float(pair.norm()) ** alpha for pair in (a - b, a - c, b - c)) / 3
        score = float(energy_score(samples, x_0, alpha))
        assert score == pytest.approx(near - far / 2, abs=1e-4)


def test_normal_data_of_one_channel_have_the_known_score(rng: torch.Generator) -> None:
    """Of N(0, 1) by N(0, s^2), alpha 1: sqrt(2 / pi) (sqrt(1 + s^2) - s / sqrt(2)).

    It is least at s = 1: the derivative is s / sqrt(1 + s^2) - 1 / sqrt(2).
    """
    count = 200_000
    x_0 = torch.randn(count, 1, 1, generator=rng)
    noise = torch.randn(count, 1, 2, 1, generator=rng)
    found: dict[float, float] = {}
    for std in (0.5, 1.0, 2.0):
        scores = energy_score(std * noise, x_0, 1.0)
        found[std] = float(scores.mean())
        expected = (2 / torch.pi) ** 0.5 * ((1 + std**2) ** 0.5 - std / 2**0.5)
        assert found[std] == pytest.approx(expected, abs=6 * float(scores.std()) / count**0.5)
    assert found[1.0] < min(found[0.5], found[2.0])


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.5])
def test_the_best_scale_and_shift_are_those_of_the_data(alpha: float, rng: torch.Generator) -> None:
    """Gradients at the true distribution are zero but for chance."""
    count = 100_000
    x_0 = 0.7 + 0.4 * torch.randn(count, 1, 2, generator=rng)
    noise = torch.randn(count, 1, 2, 2, generator=rng)

    def errors(std: float, mean: float) -> list[float]:
        """Return the gradients by scale and shift, in standard errors."""
        scale, shift = (torch.full((count, 1, 1, 1), v, requires_grad=True) for v in (std, mean))
        loss = energy_score(shift + scale * noise, x_0, alpha).sum()
        each = torch.autograd.grad(loss, [scale, shift])
        return [float(grad.mean() / (grad.std() / count**0.5)) for grad in each]

    assert max(map(abs, errors(0.4, 0.7))) < 6
    assert errors(0.3, 0.7)[0] < -20
    assert errors(0.4, 0.6)[1] < -20


def test_two_clusters_are_learnt_by_their_condition_with_their_spread(
    head: EnergyHead, rng: torch.Generator
) -> None:
    centres, stds = torch.tensor([[2.0, -1.0], [-1.0, 3.0]]), torch.tensor([[0.3], [1.0]])
    z = torch.eye(4)[:2].repeat(64, 1)[None]  # (1, 128, 4)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for step in range(300):
        if step == 200:
            optimizer.param_groups[0]["lr"] = 0.002
        data = centres.repeat(64, 1) + stds.repeat(64, 1) * torch.randn(128, 2, generator=rng)
        loss = head(z, data[None], head.draw(1, 128, rng)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn = head.sample(Condition(z[0].repeat(8, 1)), noise_of(1024, rng), SAMPLER)
    for cluster in (0, 1):
        tokens = drawn[cluster::2]
        assert torch.allclose(tokens.mean(dim=0), centres[cluster], atol=0.3)
        assert float(tokens.std(dim=0).mean()) == pytest.approx(float(stds[cluster]), rel=0.35)


def test_guidance_is_of_z_and_temperature_of_the_noise(
    head: EnergyHead, rng: torch.Generator
) -> None:
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=0.1)
    z, z_null = torch.randn(2, 6, 4, generator=rng)
    noise = noise_of(6, rng)
    plain = head.sample(Condition(z), noise, SAMPLER)
    assert torch.allclose(head.sample(Condition(z, z_null, 1.0), noise, SAMPLER), plain, atol=1e-5)
    guided = head.sample(Condition(z, z_null, 3.0), noise, SAMPLER)
    assert torch.allclose(
        guided, head.sample(Condition(3 * z - 2 * z_null), noise, SAMPLER), atol=1e-4
    )
    half = head.sample(Condition(z), noise, EnergySampler(kind="energy", temperature=0.5))
    scaled = Noise(0.5 * noise.initial, 0.5 * noise.steps)
    assert torch.equal(half, head.sample(Condition(z), scaled, SAMPLER))
