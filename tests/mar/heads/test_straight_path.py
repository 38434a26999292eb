"""Times have their distribution, and points of the path lie between data and noise."""

import pytest
import torch

from mar.heads.straight_path import LogitNormal, draw_times, on_path


def test_times_have_the_distribution_that_is_asked_for(rng: torch.Generator) -> None:
    """The logits of logit-normal times are normal; a uniform time is below x with chance x."""
    count = 40_000
    times = draw_times(LogitNormal(mean=-0.5, std=1.5), (1, 1, count), rng).double()
    logits = (times / (1 - times)).log()
    assert float(logits.mean()) == pytest.approx(-0.5, abs=6 * 1.5 / count**0.5)
    assert float(logits.std()) == pytest.approx(1.5, rel=6 / (2 * count) ** 0.5)
    uniform = draw_times(None, (1, 1, count), rng)
    assert float((uniform < 0.3).float().mean()) == pytest.approx(0.3, abs=6 * 0.46 / count**0.5)


def test_the_path_is_straight_from_data_to_noise(rng: torch.Generator) -> None:
    x_0, eps = torch.randn(2, 3, 5, generator=rng), torch.randn(2, 3, 4, 5, generator=rng)
    t = torch.rand(2, 3, 4, generator=rng)
    x_t, velocity = on_path(x_0, t, eps)
    data = x_0[:, :, None].expand_as(eps)
    assert torch.equal(on_path(x_0, torch.zeros_like(t), eps)[0], data)
    assert torch.equal(on_path(x_0, torch.ones_like(t), eps)[0], eps)
    assert torch.allclose(x_t + (1 - t[..., None]) * velocity, eps, atol=1e-6)
    assert torch.allclose(x_t - t[..., None] * velocity, data, atol=1e-6)
