"""A perceptual distance sees what a network sees, and the choice of one is checked in good time."""

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import Tensor

from mar.evaluation.classifier import Classifier, ClassifierConfig, new_classifier
from mar.evaluation.lpips import LPIPSConfig
from mar.tokenizer_training import perceptual
from mar.tokenizer_training.perceptual import ClassifierDistance, ClassifierDistanceConfig


CLASSIFIER = ClassifierConfig(
    seed=3,
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
CHOICE = ClassifierDistanceConfig(kind="classifier", weight=1.0, classifier=CLASSIFIER)


@pytest.fixture
def distance() -> ClassifierDistance:
    return ClassifierDistance(new_classifier(CLASSIFIER, image_size=16, num_classes=3))


@pytest.fixture
def pairs(rng: torch.Generator) -> tuple[Tensor, Tensor]:
    first, second = 2 * torch.rand(2, 5, 3, 16, 16, generator=rng) - 1
    return first, second


def test_it_is_the_mean_squared_difference_of_directions(
    distance: ClassifierDistance, pairs: tuple[Tensor, Tensor]
) -> None:
    """For unit vectors that is 2 - 2 cos of the angle between them, averaged over places."""
    expected = [
        2 - 2 * torch.cosine_similarity(first, second).mean(dim=(1, 2))
        for first, second in zip(*map(distance.depths, pairs), strict=True)
    ]
    assert [part.shape[0] for part in distance.depths(pairs[0])] == [5, 5, 5]
    assert [part.shape[1:] for part in distance.depths(pairs[0])] == [
        (4, 16, 16),
        (8, 8, 8),
        (16, 4, 4),
    ]
    found = distance(*pairs)
    assert float(found.min()) > 0.01
    assert torch.allclose(found, torch.stack(expected).mean(dim=0), atol=1e-5)


def test_equal_images_are_at_no_distance(
    distance: ClassifierDistance, pairs: tuple[Tensor, Tensor]
) -> None:
    assert torch.equal(distance(pairs[0], pairs[0]), torch.zeros(5))


def test_a_gradient_flows_to_the_reconstruction_alone(
    distance: ClassifierDistance, pairs: tuple[Tensor, Tensor]
) -> None:
    images, reconstructions = (part.clone().requires_grad_() for part in pairs)
    distance(images, reconstructions).sum().backward()
    assert images.grad is None
    assert reconstructions.grad is not None
    assert bool((reconstructions.grad.abs().amax(dim=(1, 2, 3)) > 0).all())
    assert [p for p in distance.parameters() if p.requires_grad or p.grad is not None] == []


def test_the_network_stays_as_it_is(
    distance: ClassifierDistance, pairs: tuple[Tensor, Tensor]
) -> None:
    """Its norms use what was measured in training, so an image's distance is its own."""
    before = {name: value.clone() for name, value in distance.state_dict().items()}
    whole = distance(*pairs)
    rows = [tuple(part[row : row + 1] for part in pairs) for row in range(5)]
    alone = torch.cat([distance(*row) for row in rows])
    assert torch.allclose(whole, alone, atol=1e-6)
    assert all(torch.equal(before[name], value) for name, value in distance.state_dict().items())


# The choice


def give(config: ClassifierConfig) -> Classifier:
    return new_classifier(config, image_size=16, num_classes=3)


def refuse(config: ClassifierConfig) -> Classifier:
    raise AssertionError("nobody asked for a classifier")


def test_none_needs_nothing() -> None:
    assert perceptual.load("none", refuse) is None


def test_a_classifier_is_asked_for_by_its_config() -> None:
    distance = perceptual.load(CHOICE, give)
    assert isinstance(distance, ClassifierDistance)
    assert distance.classifier.config == CLASSIFIER
    assert not distance.classifier.training


def test_weights_of_lpips_begin_at_the_base(tmp_path: Path) -> None:
    config = LPIPSConfig(kind="lpips", weight=1.0, weights="vgg16.pth", weights_sha256=None)
    with pytest.raises(ValueError, match=rf"weights: {tmp_path}/vgg16\.pth is missing"):
        perceptual.load(config, refuse, base=tmp_path)


def test_lpips_without_weights_says_what_else_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    config = LPIPSConfig(kind="lpips", weight=1.0, weights=None, weights_sha256=None)
    message = (
        r"tokenizer_training\.perceptual\.weights is null and .* cannot be downloaded .* or its "
        r"path as tokenizer_training\.perceptual\.weights, or tokenizer_training\.perceptual: none,"
        r" or tokenizer_training\.perceptual\.kind: classifier, which need no download$"
    )
    with pytest.raises(ValueError, match=message):
        perceptual.load(config, refuse)
