"""The L2 head learns the mean of what it should have drawn: it has no distribution."""

import torch

from mar.heads.base import Condition, Noise
from mar.heads.l2 import L2, L2Config, L2Sampler


SAMPLER = L2Sampler(kind="l2")


def new_head(rng: torch.Generator) -> L2:
    head = L2(L2Config(kind="l2"), channels=2, z_width=4)
    head.initialize(rng)
    return head


def noise_of(rng: torch.Generator) -> Noise:
    return Noise(torch.randn(8, 2, generator=rng), torch.zeros(0, 8, 2))


def test_of_two_clusters_it_learns_the_middle(rng: torch.Generator) -> None:
    head = new_head(rng)
    z = torch.ones(1, 64, 4)
    data = torch.tensor([[2.0, -1.0], [0.0, 5.0]]).repeat(32, 1)[None]
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(200):
        loss = head(z, data, head.draw(1, 64, rng)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn = head.sample(Condition(z[0, :8]), noise_of(rng), SAMPLER)
    assert torch.allclose(drawn, torch.tensor([1.0, 2.0]).expand(8, 2), atol=1e-2)


def test_the_loss_is_the_mean_square_over_channels(rng: torch.Generator) -> None:
    head = new_head(rng)
    z, x_0 = torch.randn(2, 3, 4, generator=rng), torch.randn(2, 3, 2, generator=rng)
    expected = (head.linear(z) - x_0).square().sum(dim=2, keepdim=True) / 2
    assert torch.allclose(head(z, x_0, ()), expected)


def test_guidance_combines_predictions(rng: torch.Generator) -> None:
    head = new_head(rng)
    z, z_null = torch.randn(2, 8, 4, generator=rng)
    noise = noise_of(rng)
    guided = head.sample(Condition(z, z_null, 3.0), noise, SAMPLER)
    plain, null = (head.sample(Condition(each), noise, SAMPLER) for each in (z, z_null))
    assert torch.allclose(guided, 3 * plain - 2 * null, atol=1e-5)
    assert torch.equal(head.sample(Condition(z), noise_of(rng), SAMPLER), plain)
