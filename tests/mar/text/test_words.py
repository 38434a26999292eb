"""Words are learnt from captions, whatever the script, and what is unknown is said."""

from pathlib import Path

import pytest
import torch

from mar.text.registry import load_encoder, save_encoder
from mar.text.words import Words, WordsConfig, split


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A red seven, left of a two.", ["a", "red", "seven", "left", "of", "a", "two"]),
        ("the dog's Caf\u00e9 cafe\u0301", ["the", "dog's", "caf\u00e9", "caf\u00e9"]),
        ("STRASSE stra\u00dfe", ["strasse", "strasse"]),
        ("\u4e00\u53ea\u732b sits", ["\u4e00", "\u53ea", "\u732b", "sits"]),
        ("\u043a\u043e\u0448\u043a\u0430 3x", ["\u043a\u043e\u0448\u043a\u0430", "3x"]),
        # Hindi, vowelled Arabic, Burmese, and Sinhala with a joiner.
        (
            "\u0915\u093e \u0915\u0940, \u0915\u0941",
            ["\u0915\u093e", "\u0915\u0940", "\u0915\u0941"],
        ),
        (
            "\u0642\u0650\u0637\u0651\u0629 \u0648\u064e",
            ["\u0642\u0650\u0637\u0651\u0629", "\u0648\u064e"],
        ),
        (
            "\u1000\u103c\u1031\u102c\u1004\u103a \u1014\u102e",
            ["\u1000\u103c\u1031\u102c\u1004\u103a", "\u1014\u102e"],
        ),
        ("\u0dc1\u0dca\u200d\u0dbb\u0dd3", ["\u0dc1\u0dca\u200d\u0dbb\u0dd3"]),
        ("1\ufe0f \u2764\ufe0f \u0301", ["1"]),
        (" ... ", []),
    ],
)
def test_a_text_is_cut_into_words(text: str, words: list[str]) -> None:
    assert split(text) == words


def test_frequent_words_come_first_and_rare_ones_are_left_out() -> None:
    captions = ["a cat", "a dog", "a cat and a bird"]
    words = WordsConfig(kind="words", min_count=1).learn(captions, base=Path()).words
    assert words == ["a", "cat", "and", "bird", "dog"]
    assert WordsConfig(kind="words", min_count=2).learn(captions, base=Path()).words == ["a", "cat"]
    with pytest.raises(ValueError, match=r"text\.min_count: no word is in 4 of the training"):
        WordsConfig(kind="words", min_count=4).learn(captions, base=Path())


def test_a_text_is_cut_at_the_slots_and_filled_with_zeros() -> None:
    words = Words(["a", "cat", "dog"])
    encoded = words.encode(["A dog", "cat a bird cat a", "", "bird"], 3)
    assert torch.equal(encoded, torch.tensor([[1, 3, 0], [2, 1, 2], [0, 0, 0], [0, 0, 0]]))
    assert words.tokenise(["a bird, a fish"]) == [([1, 1], ["bird", "fish"])]


def test_an_encoder_is_kept_in_a_file(tmp_path: Path) -> None:
    section = WordsConfig(kind="words", min_count=1)
    save_encoder(
        tmp_path / "encoder.json", section, section.learn(["a \u732b", "a dog"], base=tmp_path)
    )
    encoder = load_encoder(tmp_path / "encoder.json", base=tmp_path)
    assert isinstance(encoder, Words)
    assert encoder.words == ["a", "dog", "\u732b"]
    assert encoder.identity == Words(encoder.words).identity != Words(["a"]).identity
    save_encoder(tmp_path / "none.json", None, None)
    assert load_encoder(tmp_path / "none.json", base=tmp_path) is None
