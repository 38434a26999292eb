"""Classes to generate are found by number and by name, and never guessed."""

import re

import pytest
from sample_configs import sample_config

from mar.sampling.labels import find_labels, resolve_labels


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
