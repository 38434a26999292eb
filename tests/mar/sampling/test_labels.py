"""Classes to generate are found by number and by name, and never guessed."""

import re

import pytest
import torch
from sample_configs import sample_config

from mar.sampling.labels import find_labels, labels_as_data, resolve_labels


NAMES = ["cat", "dog", "caf\u00e9", "crane", "crane"]


def test_numbers_and_names_are_resolved() -> None:
    assert resolve_labels(["dog", 0, "dog", 3], NAMES) == [1, 0, 1, 3]
    assert resolve_labels(None, NAMES) is None


def test_accents_may_be_stored_in_either_way() -> None:
    assert resolve_labels(["cafe\u0301"], NAMES) == [2]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("dgo", "'dgo' is not the name of a class; did you mean 'dog'?"),
        ("zebra fish", "'zebra fish' is not the name of a class"),
        ("crane", "2 classes are called 'crane'; give the number of one: 3, 4"),
        (5, "5 is not a class, they are 0 to 4"),
    ],
)
def test_what_names_no_class_is_refused(chosen: int | str, message: str) -> None:
    with pytest.raises(ValueError, match="labels") as caught:
        resolve_labels([chosen], NAMES)
    assert str(caught.value) == f"sample.labels: {message}"


def test_a_number_that_is_another_classs_name_is_refused() -> None:
    names = ["0", "1", "2", "10", "11"]
    assert resolve_labels([2, "10", "2"], names) == [2, 3, 2]
    names = ["1", "2", "10"]
    assert resolve_labels(["2", "1", 0], names) == [1, 0, 0]
    with pytest.raises(ValueError, match="quotes") as caught:
        resolve_labels([2], names)
    assert str(caught.value) == (
        "sample.labels: 2 may be the class called '2', which is number 1, or class number 2, which "
        "is called '10'; give the name in quotes"
    )


def test_a_section_may_mix_names_and_numbers() -> None:
    assert sample_config(labels=["cat", 3]).labels == ["cat", 3]


def test_a_name_that_is_a_number_wins_over_the_number_of_a_class() -> None:
    names = ["crane", "1", "0", "crane"]
    assert find_labels(["1", "0", "3", 0, 2], names) == [1, 2, 3, 0, 2]
    with pytest.raises(ValueError, match=r"several classes have this name, give one of .* 0, 3"):
        find_labels(["crane"], names)


@pytest.mark.parametrize("asked", ["lepard", 4, -1])
def test_a_class_that_does_not_exist_is_named(asked: int | str) -> None:
    hint = ", did you mean 'leopard'?" if asked == "lepard" else ""
    expected = (
        f"^{asked!r} is neither the name of a class{re.escape(hint)} nor a number from 0 to 1$"
    )
    with pytest.raises(ValueError, match=expected):
        find_labels([asked], ["leopard", "hare"])


@pytest.mark.parametrize("num_images", [1, 7, 100, 1000])
def test_labels_as_data_are_as_frequent_to_within_one_image(num_images: int) -> None:
    counts = [500, 0, 30, 3, 3, 1, 1]
    labels = labels_as_data(num_images, counts, seed=0)
    assert len(labels) == num_images
    found = labels.bincount(minlength=7)
    expected = torch.tensor(counts) * num_images / sum(counts)
    assert float((found - expected).abs().max()) < 1


def test_labels_as_data_come_in_an_order_of_the_seed() -> None:
    first, again, other = (labels_as_data(200, [100, 100], seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 30 < int(first[:100].sum()) < 70  # not one class after the other
    assert resolve_labels("as_data", ["a", "b"]) is None


def test_labels_as_data_need_images() -> None:
    with pytest.raises(ValueError, match=r"sample\.labels: as_data needs training images"):
        labels_as_data(5, [0, 0], seed=0)
