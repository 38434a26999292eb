"""A reconstruction's loss is LDM's: sums over an image, divided by a variance that is learned."""

import math
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from mar.evaluation.classifier import ClassifierConfig, new_classifier
from mar.tokenizer_training.loss import LearnedVariance, ReconstructionLoss
from mar.tokenizer_training.perceptual import ClassifierDistance, ClassifierDistanceConfig


CLASSIFIER = ClassifierConfig(
    seed=0,
    width=4,
    feature_width=6,
    steps=1,
    batch_size=2,
    lr=0.01,
    weight_decay=0.0,
    shift=0,
    flip=False,
    noise=0.0,
)
VALUES = 3 * 8 * 8


@pytest.fixture
def pairs(rng: torch.Generator) -> tuple[Tensor, Tensor]:
    first, second = torch.randn(2, 2, 3, 8, 8, generator=rng)
    return first, second


def plain(variance: LearnedVariance | None = None) -> ReconstructionLoss:
    return ReconstructionLoss("none", None, variance)


def test_l1_is_a_sum_over_an_image(pairs: tuple[Tensor, Tensor]) -> None:
    loss, terms = plain()(*pairs, autocast=nullcontext)
    assert terms.keys() == {"l1"}
    assert torch.allclose(loss, VALUES * (pairs[0] - pairs[1]).abs().mean())
    assert torch.equal(terms["l1"], loss)


def test_the_distance_counts_for_each_value(pairs: tuple[Tensor, Tensor]) -> None:
    """The sum over an image of |difference| + weight * distance, as LDM writes it."""
    choice = ClassifierDistanceConfig(kind="classifier", weight=0.5, classifier=CLASSIFIER)
    network = ClassifierDistance(new_classifier(CLASSIFIER, image_size=8, num_classes=3))
    loss, terms = ReconstructionLoss(choice, network, None)(*pairs, autocast=nullcontext)
    distances = network(*pairs)
    each = (pairs[0] - pairs[1]).abs() + 0.5 * distances[:, None, None, None]
    assert torch.allclose(loss, each.sum() / 2)
    assert terms.keys() == {"l1", "perceptual"}
    assert torch.allclose(loss, terms["l1"] + terms["perceptual"])


def test_the_variance_is_that_of_the_likelihood(pairs: tuple[Tensor, Tensor]) -> None:
    variance = LearnedVariance()
    loss, terms = plain(variance)(*pairs, autocast=nullcontext)
    assert torch.equal(loss, terms["l1"])  # the first variance is 1
    with torch.no_grad():
        variance.log_variance.fill_(0.7)
    loss, terms = plain(variance)(*pairs, autocast=nullcontext)
    each = (pairs[0] - pairs[1]).abs() / math.exp(0.7) + 0.7
    assert torch.allclose(loss, each.sum() / 2)
    assert terms.keys() == {"l1", "nll", "log_variance"}
    assert float(terms["log_variance"]) == pytest.approx(0.7)


@pytest.mark.parametrize(("value", "sign"), [(0.2, -1), (0.25, 0), (0.3, 1)])
def test_the_best_variance_is_the_mean_error(value: float, sign: int) -> None:
    variance = LearnedVariance()
    nn.init.constant_(variance.log_variance, math.log(value))
    variance(torch.tensor(12.0), values=48).backward()
    assert variance.log_variance.grad is not None
    assert round(float(variance.log_variance.grad), 4) * sign >= 0
    assert (abs(float(variance.log_variance.grad)) < 1e-4) == (sign == 0)


def test_what_is_reported_of_the_variance_is_its_value_then(pairs: tuple[Tensor, Tensor]) -> None:
    variance = LearnedVariance()
    _, terms = plain(variance)(*pairs, autocast=nullcontext)
    nn.init.constant_(variance.log_variance, 5.0)
    assert float(terms["log_variance"]) == 0
