"""Before captions are encoded, it is said how many are cut and what of them is not known."""

from pathlib import Path

import pytest

from mar.text.cache import CaptionedImages, Captions, write_captions
from mar.text.survey import Survey
from mar.text.words import Words


def survey(folder: Path, texts: list[list[str]], count: int = 2) -> Survey:
    names = [str(number) for number in range(len(texts))]
    held_out = CaptionedImages(["other"], [["a a a a a"]])
    write_captions(folder, {"train": CaptionedImages(names, texts), "held_out": held_out})
    return Survey(Captions(folder), Words(["a", "cat", "dog"]), count)


def test_a_caption_counts_as_often_as_images_have_it(tmp_path: Path) -> None:
    found = survey(tmp_path, [["a cat", "a cat a dog"], ["a cat"], ["dog"]])
    assert found.metrics() == {
        "num_captions": 4,
        "mean_tokens": pytest.approx(9 / 4),
        "share_cut": 0.25,
        "share_unknown": 0.0,
    }
    assert found.kept_tokens == 2 + 2 + 1
    assert found.remarks() == [
        "4 captions to train on, 3 words, 2.2 tokens in a caption; 25.0% of the captions have more "
        "than 2 tokens (generator.condition_tokens) and are cut"
    ]


def test_words_that_are_not_known_are_said_where_they_are_many(tmp_path: Path) -> None:
    known = [["a cat"]] * 19
    assert len(survey(tmp_path / "few", [*known, ["a \u732b"]]).remarks()) == 1
    found = survey(tmp_path / "many", [*known, ["a \u732b"], ["\u72ac"]])
    assert found.remarks()[1:] == [
        "9.5% of the captions have words that are not known and left out, as \u732b, \u72ac",
        "nothing is known of 4.8% of the captions, whose images are trained without a text",
    ]
