"""The cache gives each image the tokens of one of its captions, as they were encoded."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mar.text.cache import CaptionedImages, Captions, TextCache, write_captions
from mar.text.present import is_present
from mar.text.token_files import Dtype, TokenFiles, file_path, write_tokens
from mar.text.words import Words


WORDS = Words(["a", "cat", "dog", "red"])
SPLITS = {
    "train": CaptionedImages(
        ["0", "1", "2"], [["a cat"], ["a dog", "a red dog", "red red red red"], ["a cat"]]
    ),
    "held_out": CaptionedImages(["3", "4"], [["a red cat", "cat"], ["dog"]]),
}


def write(folder: Path, count: int = 3) -> None:
    """Write all captions, and the tokens of those to train on in two files."""
    write_captions(folder, SPLITS)
    captions = Captions(folder)
    for number, part in enumerate(torch.arange(captions.num_trained).split(3)):
        tokens = WORDS.encode(captions.texts(part), count)
        write_tokens(file_path(folder, number), tokens, "int32", WORDS.identity)


@pytest.fixture
def cache(tmp_path: Path) -> TextCache:
    write(tmp_path)
    return TextCache.open(tmp_path, WORDS, 3)


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


def test_names_and_uses_are_those_of_the_images_to_train_on_and_prompts_of_the_others(
    cache: TextCache, tmp_path: Path
) -> None:
    assert cache.names == ["0", "1", "2"]
    captions = Captions(tmp_path)
    assert captions.held_out() == ["a red cat", "dog"]
    assert captions.texts(torch.arange(4)) == ["a cat", "a dog", "a red dog", "red red red red"]
    assert captions.uses().tolist() == [2, 1, 1, 1]


def test_held_out_captions_are_drawn_by_a_seed(tmp_path: Path) -> None:
    write(tmp_path)
    captions = Captions(tmp_path)
    of = {"3": {"a red cat", "cat"}, "4": {"dog"}}
    seen: set[str] = set()
    for seed in range(20):
        rng = torch.Generator().manual_seed(seed)
        texts, names = captions.draw_held_out(2, rng)
        assert sorted(names) == ["3", "4"]
        assert all(text in of[name] for text, name in zip(texts, names, strict=True))
        assert captions.draw_held_out(2, rng.manual_seed(seed)) == (texts, names)
        seen |= {*texts, names[0]}
    assert seen == {"a red cat", "cat", "dog", "3", "4"}
    with pytest.raises(ValueError, match="3 images are to be drawn, and 2 are held out"):
        captions.draw_held_out(3, torch.Generator())


def test_the_same_captions_make_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name)
    for file in ("captions.arrow", "images.arrow", "tokens-00000.arrow", "tokens-00001.arrow"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_without_texts_there_are_no_rows(tmp_path: Path) -> None:
    write_captions(tmp_path, {})
    empty = Captions(tmp_path)
    assert (empty.names, empty.held_out(), empty.num_trained) == ([], [], 0)


def embeddings(rng: torch.Generator) -> Tensor:
    """Return texts of 2, 4, 0, 1 and 3 tokens."""
    lengths = torch.tensor([2, 4, 0, 1, 3])
    present = torch.arange(4) < lengths[:, None]
    return torch.randn(5, 4, 6, generator=rng) * present[..., None]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_embeddings_come_back_in_any_order(
    tmp_path: Path, rng: torch.Generator, dtype: Dtype
) -> None:
    expected = embeddings(rng).to(getattr(torch, dtype))
    for number, part in enumerate(expected.split(2)):
        write_tokens(file_path(tmp_path, number), part, dtype, "an encoder")
    files = TokenFiles(tmp_path, 4, "an encoder")
    order = torch.tensor([4, 0, 1, 3, 0, 2, 4])
    assert len(files) == 5
    assert torch.equal(files.read(order), expected[order])


def test_a_file_holds_tokens_and_not_what_fills_up(tmp_path: Path, rng: torch.Generator) -> None:
    tokens = torch.cat([embeddings(rng), torch.zeros(500, 4, 6)])
    assert int(is_present(tokens).sum()) == 10
    write_tokens(file_path(tmp_path, 0), tokens, "float16", "an encoder")
    assert file_path(tmp_path, 0).stat().st_size < 505 * 4 + 4000


def test_embeddings_too_large_for_their_number_type_are_refused(tmp_path: Path) -> None:
    tokens = torch.full((1, 2, 3), 7e4)
    with pytest.raises(
        ValueError, match=r"text\.cache\.dtype: embeddings reach 70000, .*'float16'"
    ):
        write_tokens(file_path(tmp_path, 0), tokens, "float16", "an encoder")
    write_tokens(file_path(tmp_path, 0), tokens, "bfloat16", "an encoder")


def test_tokens_of_another_count_encoder_or_captions_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(ValueError, match=r"first 3 tokens .* generator\.condition_tokens is 4"):
        TextCache.open(tmp_path, WORDS, 4)
    other = Words(["a", "cat"])
    with pytest.raises(
        ValueError, match=f"tokens of the encoder {WORDS.identity}, expected {other.identity}"
    ):
        TextCache.open(tmp_path, other, 3)
    file_path(tmp_path, 1).unlink()
    with pytest.raises(ValueError, match="holds the tokens of 3 captions, expected 4"):
        TextCache.open(tmp_path, WORDS, 3)
    file_path(tmp_path, 0).unlink()
    with pytest.raises(ValueError, match="holds no tokens of captions"):
        TextCache.open(tmp_path, WORDS, 3)


@pytest.mark.parametrize("name", ["captions.arrow", "tokens-00001.arrow"])
def test_a_damaged_file_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path)
    path = tmp_path / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=name):
        TextCache.open(tmp_path, WORDS, 3)
