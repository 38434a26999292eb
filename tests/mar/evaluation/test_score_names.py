"""A distance of few images has their count in its name, and a name can be taken apart again."""

import pytest

from mar.evaluation.score_names import Parts, bases, count_warnings, find, parts, with_count


@pytest.mark.parametrize(
    ("count", "width", "name"),
    [
        (16, 64, "fid_16"),
        (2047, 64, "fid_2047"),
        (2048, 64, "fid"),
        (2048, 2048, "fid"),
        (5000, 6000, "fid_5000"),  # fewer images than features
        (50_000, 2048, "fid"),
    ],
)
def test_a_name_has_the_count_of_too_few_images(count: int, width: int, name: str) -> None:
    assert with_count("fid", count, width) == name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fid", Parts("fid", None, False)),
        ("fd_dinov2_500", Parts("fd_dinov2", 500, False)),
        ("classifier_fid_16_std", Parts("classifier_fid", 16, True)),
        ("inception_score_std", Parts("inception_score", None, True)),
        ("classifier_fid_inf", Parts("classifier_fid_inf", None, False)),
        ("a.b", Parts("a.b", None, False)),
    ],
)
def test_a_name_comes_apart(name: str, expected: Parts) -> None:
    assert parts(name) == expected


def test_scores_are_found_whatever_their_count() -> None:
    scores = {"fid_16": 3.0, "fid_16_std": 0.1, "kid": 2.0}
    assert find(scores, "fid") == 3.0
    assert find(scores, "fid", spread=True) == 0.1
    assert find(scores, "kid", spread=True) is None
    assert bases(scores, {"fid_359": 1.0, "recall": 0.5}) == ["fid", "kid", "recall"]


def test_warnings_say_what_a_count_makes_of_a_distance() -> None:
    assert count_warnings("fid", 50_000, 2048) == []
    (few,) = count_warnings("fid", 16, 64)
    assert few.startswith("fid_16 is too large, as 16 images are too few for the covariance of 64")
    (doubtful,) = count_warnings("fid", 5000, 2048)
    assert doubtful.startswith("fid is too large, as 5000 images are too few")
