"""The adversarial losses are their closed forms, and a discriminator learns what it should."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from mar.tokenizer_training.adversary import (
    AdversarialConfig,
    Adversary,
    LeCam,
    adaptive_weight,
    check_size,
    gradient_penalty,
    hinge_loss,
)


R1 = {"kind": "r1", "weight": 3.0}
LECAM = {"kind": "lecam", "weight": 0.5, "decay": 0.9}


def make_config(**changes: Any) -> AdversarialConfig:
    fields: dict[str, Any] = {
        "start_step": 0,
        "warmup_steps": 0,
        "weight": 0.5,
        "max_weight": 1e4,
        "lr": 0.01,
        "base_channels": 8,
        "num_layers": 1,
        "regulariser": "none",
        **changes,
    }
    return AdversarialConfig.model_validate(fields)


def fresh(seed: int = 0, **changes: Any) -> Adversary:
    torch.rand(3)  # whatever the global generator is at
    device = torch.device("cpu")
    return Adversary(make_config(**changes), seed=seed, betas=(0.5, 0.9), device=device)


@pytest.fixture
def batch(rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return images, and others that are brighter."""
    images = torch.rand(5, 3, 12, 12, generator=rng) - 1
    return images, images + 0.8


@pytest.fixture
def learn(batch: tuple[Tensor, Tensor]) -> Callable[..., dict[str, Tensor]]:
    def learn(adversary: Adversary, micro_batch: int = 5) -> dict[str, Tensor]:
        return adversary.discriminator_step(*batch, micro_batch=micro_batch, autocast=nullcontext)

    return learn


# Closed forms


def test_the_hinge_loss_ends_at_its_margins() -> None:
    real = torch.tensor([[[2.0, 0.5], [-1.0, 1.0]]])  # short of 1 by 0, 0.5, 2, 0
    fake = torch.tensor([[[-2.0, -1.0], [0.0, 3.0]]])  # beyond -1 by 0, 0, 1, 4
    assert float(hinge_loss(real, fake)) == pytest.approx((2.5 / 4 + 5 / 4) / 2)


@pytest.mark.parametrize(
    ("scale", "max_weight", "expected"), [(1.0, 1e4, 2.0), (10.0, 1e4, 20.0), (10.0, 7.0, 7.0)]
)
def test_the_adaptive_weight_is_the_ratio_of_gradients(
    scale: float, max_weight: float, expected: float
) -> None:
    """Of a linear layer w x: the gradient of a mean of c w x is c times the mean of x."""
    weights = torch.zeros(2, requires_grad=True)
    x = torch.tensor([[3.0, 4.0], [3.0, 4.0]])
    decoded = x @ weights  # (2)
    losses = (scale * decoded.mean(), 0.5 * decoded.mean())
    gradients = [torch.autograd.grad(loss, weights, retain_graph=True)[0] for loss in losses]
    found = adaptive_weight(gradients[0], gradients[1], max_weight=max_weight)
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_no_adversarial_gradient_gives_the_largest_weight() -> None:
    found = adaptive_weight(torch.ones(4), torch.zeros(4), max_weight=100.0)
    assert float(found) == 100
    assert float(adaptive_weight(torch.ones(4), torch.zeros(4), max_weight=1e9)) == pytest.approx(
        2e4
    )  # |gradient| / 1e-4


def test_the_gradient_penalty_is_that_of_a_linear_function(rng: torch.Generator) -> None:
    images = torch.randn(4, 3, 2, 2, generator=rng, requires_grad=True)
    slopes = torch.randn(4, 3, 2, 2, generator=rng).requires_grad_()
    each = (images * slopes).sum(dim=(1, 2, 3))
    logits = torch.stack([each, 3 * each], dim=1)[:, None]  # (B, 1, 2): the mean is 2 each
    penalty = gradient_penalty(logits, images)
    expected = (2 * slopes).square().sum(dim=(1, 2, 3)).mean() / 2
    assert torch.allclose(penalty, expected)
    penalty.backward()  # it can be minimised
    assert slopes.grad is not None
    assert torch.allclose(slopes.grad, slopes.detach())  # 4 s^2 / 2, a mean over 4 images


def test_lecam_knows_nothing_at_first(rng: torch.Generator) -> None:
    real, fake = torch.randn(2, 3, 2, 2, generator=rng)
    assert float(LeCam(0.9)(real, fake)) == 0


def test_lecam_pulls_logits_that_are_further_apart_than_they_were() -> None:
    lecam = LeCam(0.9)
    for real, fake, skipped in ((1.0, -2.0, 0.0), (math.nan, 1.0, 1.0), (2.0, -1.0, 0.0)):
        lecam.update(torch.tensor(real), torch.tensor(fake), torch.tensor(skipped))
    mean_real = (0.9 * 1 + 2) / 1.9  # weights 0.9 and 1: the average of two steps
    mean_fake = (0.9 * -2 - 1) / 1.9
    real, fake = torch.tensor([[[3.0, -9.0]]]), torch.tensor([[[-4.0, 9.0]]])
    expected = ((3 - mean_fake) ** 2 + 0) / 2 + ((mean_real + 4) ** 2 + 0) / 2
    assert float(lecam(real, fake)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("start", "warmup", "expected"),
    [(2, 0, [0, 0, 1, 1, 1, 1]), (2, 2, [0, 0, 0.5, 1, 1, 1]), (0, 4, [0.25, 0.5, 0.75, 1, 1, 1])],
)
def test_the_weight_warms_up_from_the_start(start: int, warmup: int, expected: list[float]) -> None:
    adversary = fresh(start_step=start, warmup_steps=warmup)
    assert [adversary.warmup_factor(step) for step in range(6)] == expected


def test_the_generator_s_loss_falls_as_images_look_more_real(
    batch: tuple[Tensor, Tensor], learn: Callable[..., dict[str, Tensor]]
) -> None:
    """And it has a gradient for the images alone."""
    adversary = fresh(lr=0.003)
    for _ in range(30):
        learn(adversary)
    real, fake = batch
    with torch.no_grad():
        assert float(adversary.generator_loss(real)) < 0 < float(adversary.generator_loss(fake))
    images = fake.clone().requires_grad_()
    adversary.optimizer.zero_grad()
    loss = adversary.generator_loss(images)
    (gradient,) = torch.autograd.grad(loss, images, retain_graph=True)
    assert bool(adversary.generator_loss(images - 0.1 * gradient.sign()) < loss)
    loss.backward()
    assert all(parameter.grad is None for parameter in adversary.parameters())


# Steps


@pytest.mark.parametrize("regulariser", ["none", R1, LECAM], ids=["none", "r1", "lecam"])
def test_it_learns_to_tell_images_from_others(
    regulariser: object, learn: Callable[..., dict[str, Tensor]]
) -> None:
    adversary = fresh(regulariser=regulariser, lr=0.003)
    first = learn(adversary)
    for _ in range(30):
        last = learn(adversary)
    assert float(last["discriminator_accuracy"]) > 0.95
    assert float(last["discriminator_loss"]) < 0.8 * float(first["discriminator_loss"])
    assert float(last["logits_real"]) > 0 > float(last["logits_fake"])


def test_the_numbers_are_those_before_the_step(learn: Callable[..., dict[str, Tensor]]) -> None:
    """Of a discriminator whose logit is 0.25 whatever it sees, which is right for images alone."""
    adversary = fresh()
    *_, weight, bias = adversary.discriminator.parameters()
    torch.nn.init.zeros_(weight)
    torch.nn.init.constant_(bias, 0.25)
    found = {name: float(value) for name, value in learn(adversary).items()}
    assert found.pop("discriminator_grad_norm") > 0
    assert found == pytest.approx(
        {
            "discriminator_loss": (0.75 + 1.25) / 2,
            "discriminator_accuracy": 0.5,
            "logits_real": 0.25,
            "logits_fake": 0.25,
        }
    )


@pytest.mark.parametrize("regulariser", ["none", R1, LECAM], ids=["none", "r1", "lecam"])
@pytest.mark.parametrize("micro_batch", [1, 2])
def test_a_step_does_not_depend_on_the_micro_batch(
    regulariser: object, micro_batch: int, learn: Callable[..., dict[str, Tensor]]
) -> None:
    whole, parts = fresh(regulariser=regulariser), fresh(regulariser=regulariser)
    for _ in range(2):  # LeCam's penalty begins in the second
        one, other = learn(whole), learn(parts, micro_batch)
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.allclose(value, other[name], rtol=2e-3, atol=1e-5), name


@pytest.mark.parametrize("regulariser", [R1, LECAM], ids=["r1", "lecam"])
def test_a_penalty_is_weighted_and_minimised(
    regulariser: dict[str, Any], learn: Callable[..., dict[str, Tensor]]
) -> None:
    kind = regulariser["kind"]
    strong = {**regulariser, "weight": 1000 * regulariser["weight"]}
    gentle, harsh = (fresh(regulariser=chosen, lr=0.003) for chosen in (regulariser, strong))
    learn(gentle)
    learn(harsh)
    if kind == "lecam":  # the same weights before this step: the first had no penalty
        assert torch.allclose(1000 * learn(gentle)[kind], learn(harsh)[kind], rtol=1e-4)
    for _ in range(8):
        mild, held = learn(gentle), learn(harsh)
    assert float(held[kind]) / 1000 < 0.5 * float(mild[kind])
    spread = [float(found["logits_real"] - found["logits_fake"]) for found in (mild, held)]
    assert spread[1] < spread[0]


def test_a_fresh_one_depends_on_its_seed_alone() -> None:
    first, second, other = (fresh(seed) for seed in (1, 1, 2))
    name = "discriminator.layers.0.weight"
    assert torch.equal(first.state_dict()[name], second.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


def test_bfloat16_leaves_losses_and_weights_in_float32(batch: tuple[Tensor, Tensor]) -> None:
    adversary = fresh(regulariser=R1)
    found = adversary.discriminator_step(
        *batch, micro_batch=2, autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16)
    )
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert {parameter.dtype for parameter in adversary.parameters()} == {torch.float32}
    assert all(bool(value.isfinite()) for value in found.values())


def test_images_that_are_too_small_are_refused() -> None:
    check_size(make_config(num_layers=3), 24, key="section.adversarial")
    with pytest.raises(
        ValueError,
        match=r"^section\.adversarial\.num_layers: a value of 3 needs images of at least 24 px, "
        r"got 16$",
    ):
        check_size(make_config(num_layers=3), 16, key="section.adversarial")
