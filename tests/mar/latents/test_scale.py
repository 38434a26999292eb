"""The scale of latents is that of their sampled posterior; what cannot be trained on is refused."""

import math

import pytest
import torch
from torch import Tensor

from mar.latents.posterior import Posterior
from mar.latents.scale import (
    LatentStatistics,
    check_latent_std,
    check_scale,
    outliers_warning,
    weak_channels_warning,
)


def statistics(mean: Tensor, log_variance: Tensor | None = None) -> LatentStatistics:
    found = LatentStatistics(mean.shape[1])
    for start in range(0, len(mean), 7):
        part = slice(start, start + 7)
        noise = None if log_variance is None else log_variance[part]
        found.update(Posterior(mean[part], noise))
    return found


def latents(rng: torch.Generator, *stds: float) -> Tensor:
    """Return latents (200, c, 4, 3) whose channels have these standard deviations."""
    scale = torch.tensor(stds)[:, None, None]
    return scale * torch.randn(200, len(stds), 4, 3, generator=rng)


def test_numbers_are_those_of_the_sampled_posterior(rng: torch.Generator) -> None:
    mean = latents(rng, 2.0, 0.5) + torch.tensor([1.0, -3.0])[:, None, None]
    log_variance = torch.randn(200, 2, 4, 3, generator=rng)
    found = statistics(mean, log_variance)
    variance = log_variance.double().exp()
    total = mean.double().var(correction=0) + variance.mean()
    scale, summary = found.scale(), found.summary()
    assert scale["count"] == 200
    assert scale["std"] == pytest.approx(float(total.sqrt()), rel=1e-9)
    assert scale["mean"] == pytest.approx(float(mean.double().mean()), rel=1e-9)
    for channel in range(2):
        signal = float(mean[:, channel].double().var(correction=0))
        noise = float(variance[:, channel].mean())
        assert scale["channel_std"][channel] == pytest.approx(math.sqrt(signal + noise), rel=1e-9)
        assert found.signal()[channel] == pytest.approx(signal / (signal + noise), rel=1e-9)
    kl = Posterior(mean.double(), log_variance.double()).kl().mean()
    assert summary["kl"] == pytest.approx(float(kl), rel=1e-9)
    assert summary["channel_std_min"] == min(scale["channel_std"])
    assert summary["channel_std_max"] == max(scale["channel_std"])
    assert summary["active_channels"] == 2


def test_latents_without_a_variance_are_all_signal(rng: torch.Generator) -> None:
    found = statistics(latents(rng, 3.0, 1.0))
    assert found.signal() == [1.0, 1.0]
    assert "kl" not in found.summary()


@pytest.mark.parametrize("std", [0.0101, 0.5, 4.3, 99.0])
def test_a_scale_inside_the_band_passes(rng: torch.Generator, std: float) -> None:
    found = statistics(latents(rng, *[std] * 4))
    assert 0.98 * std < found.scale()["std"] < 1.02 * std
    check_scale(found)
    assert weak_channels_warning(found) is None


@pytest.mark.parametrize(
    ("std", "said"),
    [
        (
            0.0,
            "standard deviation is .*e-.*, expected 0.01 to 100 .* gives the same for every image",
        ),
        (0.009, "standard deviation is 0.00[89].* gives the same for every image"),
        (110.0, r"standard deviation is 1\d\d, .* nothing keeps the latents near"),
        (1e3, r"\(tokenizer\.kl_weight\)"),
        (math.nan, "standard deviation is nan, expected"),
    ],
)
def test_a_scale_outside_the_band_is_refused(rng: torch.Generator, std: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_scale(statistics(latents(rng, std, std) + 0.1))


def test_a_constant_has_a_scale_of_zero_and_not_of_nan() -> None:
    found = statistics(torch.full((200, 2, 4, 3), 0.3))
    assert found.scale()["std"] < 1e-6
    assert max(found.scale()["channel_std"]) < 1e-6


def test_a_collapsed_posterior_is_refused_though_its_scale_is_one(
    rng: torch.Generator,
) -> None:
    collapsed = statistics(latents(rng, 0.05, 0.01), torch.zeros(200, 2, 4, 3))
    assert collapsed.scale()["std"] == pytest.approx(1, abs=0.01)
    with pytest.raises(ValueError, match=r"the latents are noise: .* more than 0\.2\d% is from"):
        check_scale(collapsed)
    half = statistics(latents(rng, 0.05, 0.5), torch.zeros(200, 2, 4, 3))
    check_scale(half)
    assert weak_channels_warning(half) == (
        "less than 1% of the variance of latent channel 0 of 2 is from the images, the rest noise, "
        "which a generator learns in vain"
    )
    assert half.summary()["active_channels"] == 1


def test_channels_far_below_the_largest_are_named(rng: torch.Generator) -> None:
    dead = statistics(latents(rng, 1.0, 0.0, 1.0))
    check_scale(dead)
    warning = weak_channels_warning(dead) or ""
    assert warning.startswith("the std of latent channel 1 of 3 is less than 1/100 of the largest")
    assert "(0 and 0.9" in warning or "(0 and 1" in warning
    large = statistics(latents(rng, *[1.0] * 7, 150.0))
    check_scale(large)
    warning = weak_channels_warning(large) or ""
    assert warning.startswith(
        "the std of 7 of 8 latent channels (0, 1, 2, 3, 4, ...) is less than 1/100"
    )
    assert weak_channels_warning(statistics(latents(rng, 1.0, 50.0))) is None


@pytest.mark.parametrize("ratio", [0.51, 1.0, 1.99])
def test_a_scale_that_is_given_may_be_a_little_off(ratio: float) -> None:
    check_latent_std(4.3, 4.3 / ratio, "latents.scale")


@pytest.mark.parametrize("ratio", [0.0, 0.5, 2.0, math.nan])
def test_a_scale_of_other_latents_is_refused(ratio: float) -> None:
    with pytest.raises(
        ValueError, match=r"latents\.scale: .* is 4\.3, .* a scale of about 0\.2326$"
    ):
        check_latent_std(4.3, 4.3 / ratio if ratio else math.inf, "latents.scale")


def test_the_largest_latent_of_each_image_is_known(rng: torch.Generator) -> None:
    mean, log_variance = latents(rng, 1.0), torch.full((200, 1, 4, 3), math.log(4.0))
    plain, noisy = statistics(mean), statistics(mean, log_variance)
    expected = mean.abs().flatten(1).amax(dim=1).double()
    assert torch.equal(plain.largest(), expected)
    assert torch.allclose(noisy.largest(), expected + 3 * 2.0)
    assert plain.scale()["largest"] == float(expected.max())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_an_image_whose_latents_are_far_from_the_others_is_named(
    rng: torch.Generator, dtype: torch.dtype
) -> None:
    names = [f"{index}.png" for index in range(200)]
    mean = latents(rng, 4.3, 4.3)
    assert outliers_warning(statistics(mean).largest(), names) is None
    mean[17, 1, 2, 0] = -60_000
    mean[80, 0, 0, 0] = 500
    warning = outliers_warning(statistics(mean.to(dtype).float()).largest(), names) or ""
    assert warning.startswith("17.png: its latents reach 6")
    assert "2 of 200 images" in warning


def test_latents_that_differ_as_those_of_images_do_are_no_outliers(rng: torch.Generator) -> None:
    spread = torch.linspace(0.3, 3, 200)[:, None, None, None]
    mean = latents(rng, 1.0) * spread
    assert outliers_warning(statistics(mean).largest(), [""] * 200) is None
    assert outliers_warning(statistics(torch.zeros(3, 1, 2, 2)).largest(), [""] * 3) is None
    assert outliers_warning(LatentStatistics(1).largest(), []) is None
