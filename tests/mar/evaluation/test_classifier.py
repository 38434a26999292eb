"""The classifier learns real images in seconds, and is the same whenever its seed is."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional

from mar.data.batches import batch_indices
from mar.evaluation.classifier import (
    Classifier,
    ClassifierConfig,
    augment,
    load_classifier,
    lr_factor,
    new_classifier,
    parameter_groups,
    save_classifier,
    train_classifier,
)
from mar.files import weights


CONFIG = ClassifierConfig(
    seed=0,
    width=8,
    feature_width=32,
    steps=30,
    batch_size=32,
    lr=5e-3,
    weight_decay=0.05,
    shift=1,
    flip=False,
    noise=20.0,
)


def changed(**values: object) -> ClassifierConfig:
    return ClassifierConfig.model_validate({**CONFIG.model_dump(), **values})


def batches(images: Tensor, labels: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    step = 0
    while True:
        chosen = batch_indices(len(images), batch_size, seed=0, step=step)
        yield images[chosen], labels[chosen]
        step += 1


def make_stripes(count: int) -> tuple[Tensor, Tensor]:
    """Return noisy images with stripes across (0) or down (1)."""
    rng = torch.Generator().manual_seed(count)
    stripes = (torch.arange(8) % 2 * 100).expand(3, 8, 8)
    labels = torch.randint(2, (count,), generator=rng)
    images = torch.stack([stripes if label else stripes.mT for label in labels])
    noise = torch.randint(120, images.shape, generator=rng)
    return (images + noise).to(torch.uint8), labels


def train(config: ClassifierConfig, images: Tensor, labels: Tensor, num_classes: int) -> Classifier:
    model = new_classifier(config, image_size=images.shape[-1], num_classes=num_classes)
    for _ in train_classifier(model, batches(images, labels, config.batch_size)):
        pass
    return model


def accuracy(model: Classifier, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((model(images).logits.argmax(dim=1) == labels).float().mean())


# Augmentation


def test_images_move_by_at_most_the_shift_in_each_direction() -> None:
    dots = torch.zeros(300, 3, 9, 9)
    dots[:, :, 4, 4] = 1
    moved = augment(dots, torch.Generator().manual_seed(0), shift=2, flip=False, noise=0.0)
    assert torch.equal(moved.sum(dim=(1, 2, 3)), torch.full((300,), 3.0))
    places = moved[:, 0].flatten(1).argmax(dim=1)
    seen = {(int(place) // 9 - 4, int(place) % 9 - 4) for place in places}
    assert seen == {(row, column) for row in range(-2, 3) for column in range(-2, 3)}


def test_edges_are_repeated_where_an_image_moves_away() -> None:
    plain = torch.linspace(-1, 1, 50)[:, None, None, None].expand(-1, 3, 4, 4)
    moved = augment(plain, torch.Generator().manual_seed(0), shift=3, flip=True, noise=0.0)
    assert torch.equal(moved, plain)


def test_half_of_the_images_are_mirrored() -> None:
    images = torch.rand(400, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    mirrored = augment(images, torch.Generator().manual_seed(0), shift=0, flip=True, noise=0.0)
    is_mirror = (mirrored == images.flip(3)).flatten(1).all(dim=1)
    is_same = (mirrored == images).flatten(1).all(dim=1)
    assert bool((is_mirror ^ is_same).all())
    assert 150 < int(is_mirror.sum()) < 250


def test_each_image_has_noise_of_its_own_strength() -> None:
    images = torch.zeros(200, 3, 32, 32)
    noisy = augment(images, torch.Generator().manual_seed(0), shift=0, flip=False, noise=0.5)
    strengths = noisy.std(dim=(1, 2, 3))
    assert float(strengths.max()) == pytest.approx(0.5, abs=0.02)
    assert float(strengths.median()) == pytest.approx(0.25, abs=0.05)
    assert float(strengths.min()) < 0.02


def test_no_shift_no_flip_and_no_noise_change_nothing() -> None:
    images = torch.rand(3, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(augment(images, torch.Generator(), shift=0, flip=False, noise=0.0), images)


# Training


def test_the_learning_rate_rises_to_its_peak_and_falls_to_almost_nothing() -> None:
    factors = [lr_factor(step, 100) for step in range(100)]
    assert factors[9] == max(factors) == 1.0
    assert factors[:10] == sorted(factors[:10])
    assert factors[9:] == sorted(factors[9:], reverse=True)
    assert 0 < factors[-1] < 1e-3
    assert lr_factor(0, 1) == 1.0


def test_matrices_and_kernels_are_decayed_and_nothing_else() -> None:
    model = new_classifier(CONFIG, image_size=8, num_classes=2)
    decayed, rest = (group["params"] for group in parameter_groups(model))
    assert isinstance(decayed, list)
    assert isinstance(rest, list)
    assert {p.ndim for p in decayed} == {2, 4}
    assert {p.ndim for p in rest} == {1}
    assert {*map(id, decayed), *map(id, rest)} == {id(p) for p in model.parameters()}


def test_weights_depend_on_the_seed_alone() -> None:
    first = train(CONFIG, *make_stripes(100), num_classes=2)
    torch.rand(1)  # somebody else draws from the global generator
    second = train(CONFIG, *make_stripes(100), num_classes=2)
    other = train(changed(seed=1), *make_stripes(100), num_classes=2)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    assert not torch.equal(first.head.weight, other.head.weight)


def test_it_learns_what_differs_between_two_classes() -> None:
    model = train(CONFIG, *make_stripes(200), num_classes=2)
    assert accuracy(model, *make_stripes(199)) == 1.0


def test_a_step_reports_the_loss_and_accuracy_of_its_batch() -> None:
    model = new_classifier(changed(lr=1e-9), image_size=8, num_classes=2)
    steps = list(train_classifier(model, batches(*make_stripes(64), batch_size=32)))
    assert [step.index for step in steps] == list(range(30))
    assert float(steps[0].loss) == pytest.approx(0.693, abs=0.05)  # log 2: it knows nothing yet
    assert all(not step.loss.requires_grad for step in steps)
    assert 0.2 < float(torch.stack([step.accuracy for step in steps]).mean()) < 0.8


def test_real_digits_are_recognised_after_seconds() -> None:
    pixels, classes = (np.asarray(values) for values in load_digits(return_X_y=True))
    images = torch.from_numpy(pixels).float().reshape(-1, 1, 8, 8) / 16 * 255
    images = functional.interpolate(images, size=16, mode="bilinear").round().to(torch.uint8)
    images, labels = images.expand(-1, 3, -1, -1), torch.from_numpy(classes).long()
    config = changed(width=16, steps=150, batch_size=64, lr=3e-3)
    held_out = torch.arange(len(labels)) % 5 == 0
    model = train(config, images[~held_out], labels[~held_out], num_classes=10)
    assert accuracy(model, images[held_out], labels[held_out]) >= 0.95


# The network


@pytest.mark.parametrize("size", [2, 4, 8, 13, 28, 64])
def test_any_image_size_gives_the_same_number_of_features(size: int) -> None:
    model = new_classifier(CONFIG, image_size=size, num_classes=7).eval()
    images = torch.randint(256, (3, 3, size, size), generator=torch.Generator().manual_seed(0))
    features, logits = model(images.to(torch.uint8))
    assert features.shape == (3, 32)
    assert logits.shape == (3, 7)
    assert bool(features.isfinite().all())
    assert not torch.equal(features[0], features[1])


def test_what_it_says_of_an_image_does_not_depend_on_the_others_of_a_batch() -> None:
    images, labels = make_stripes(64)
    model = train(CONFIG, images, labels, num_classes=2)
    with torch.no_grad():
        together = model(images).features
        alone = torch.cat([model(image[None]).features for image in images])
    assert torch.allclose(together, alone, atol=1e-5)


def test_a_saved_classifier_says_the_same(tmp_path: Path) -> None:
    images, labels = make_stripes(64)
    model = train(CONFIG, images, labels, num_classes=2)
    save_classifier(tmp_path / "classifier.safetensors", model)
    loaded = load_classifier(tmp_path / "classifier.safetensors")
    assert loaded.config == CONFIG
    with torch.no_grad():
        assert torch.equal(loaded(images).logits, model(images).logits)


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    weights.save(tmp_path / "other.safetensors", torch.nn.Linear(1, 1), {"config": {}})
    with pytest.raises(ValueError, match=r"other\.safetensors does not hold a classifier"):
        load_classifier(tmp_path / "other.safetensors")
