"""The cache gives each image the tokens of one of its captions."""

from pathlib import Path

import pytest
import torch

from mar.text.cache import CaptionedImages, TextCache, write_texts
from mar.text.words import Words


WORDS = Words(["a", "cat", "dog", "red"])
SPLITS = {
    "train": CaptionedImages(
        ["0", "1", "2"], [["a cat"], ["a dog", "a red dog", "red red red red"], ["a cat"]]
    ),
    "held_out": CaptionedImages(["3", "4"], [["a red cat", "cat"], ["dog"]]),
}


@pytest.fixture
def cache(tmp_path: Path) -> TextCache:
    write_texts(tmp_path, WORDS, SPLITS)
    return TextCache(tmp_path, 3)


def test_a_caption_is_chosen_by_chance(cache: TextCache) -> None:
    images = torch.tensor([2, 1, 1, 1, 1, 0])
    chance = torch.tensor([0.9, 0.0, 0.34, 0.67, 1.0, 0.5])
    assert cache.tokens(images, chance).tolist() == [
        [1, 2, 0],
        [1, 3, 0],
        [1, 4, 3],
        [4, 4, 4],
        [4, 4, 4],
        [1, 2, 0],
    ]


def test_names_are_those_of_the_images_to_train_on_and_captions_of_the_others(
    cache: TextCache,
) -> None:
    assert cache.names == ["0", "1", "2"]
    assert cache.held_out == ["a red cat", "dog"]


def test_the_same_captions_make_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_texts(tmp_path / name, WORDS, SPLITS)
    for file in ("captions.arrow", "images.arrow"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_without_texts_there_are_no_rows(tmp_path: Path) -> None:
    write_texts(tmp_path, None, {})
    empty = TextCache(tmp_path, 3)
    assert (empty.names, empty.held_out) == ([], [])


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    write_texts(tmp_path, WORDS, SPLITS)
    path = tmp_path / "captions.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"captions\.arrow"):
        TextCache(tmp_path, 3)
