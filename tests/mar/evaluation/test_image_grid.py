"""A grid shows every pixel of every image, each beside its own words."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mar.evaluation.image_grid import (
    LINE,
    PADDING,
    captioned_grid,
    comparison_grid,
    label_grid,
    save_png,
)


NAMES = ["first", "second", "third"]


def make_images(count: int, side: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(side)
    return torch.randint(256, (count, 3, side, side), generator=rng).to(torch.uint8)


def pixels(picture: Image.Image, x: int, y: int, width: int, height: int) -> np.ndarray:
    return np.asarray(picture)[y : y + height, x : x + width]


@pytest.mark.parametrize(("side", "factor"), [(8, 8), (16, 4), (48, 2), (64, 1), (80, 1)])
def test_small_images_are_enlarged_by_a_whole_factor_without_smoothing(
    side: int, factor: int
) -> None:
    images = make_images(1, side)
    picture = label_grid(images, torch.tensor([0]), class_names=NAMES, columns=1)
    shown = pixels(picture, PADDING, PADDING, side * factor, side * factor)
    expected = images[0].permute(1, 2, 0).numpy().repeat(factor, axis=0).repeat(factor, axis=1)
    assert np.array_equal(shown, expected)


def test_each_image_is_in_its_row_and_column() -> None:
    images = make_images(5, 64)
    labels = torch.tensor([0, 1, 2, 0, 1])
    picture = label_grid(images, labels, class_names=NAMES, columns=2)
    step_x, step_y = 64 + PADDING, 64 + LINE + PADDING
    assert picture.size == (PADDING + 2 * step_x, PADDING + 3 * step_y)
    for number, image in enumerate(images):
        x, y = PADDING + number % 2 * step_x, PADDING + number // 2 * step_y
        assert np.array_equal(pixels(picture, x, y, 64, 64), image.permute(1, 2, 0).numpy())
        assert pixels(picture, x, y + 64, 64, LINE).min() < 100  # something is written
    free = pixels(picture, PADDING + step_x, PADDING + 2 * step_y, step_x, step_y - PADDING)
    assert free.min() == 255


def test_a_long_caption_is_broken_between_words() -> None:
    images = make_images(2, 64)
    prompts = ["a red seven left of a blue two", "a nine"]
    whole = captioned_grid(images, prompts, columns=2, lines=3)
    assert whole.height == 64 + 3 * LINE + 2 * PADDING
    halves = [
        captioned_grid(images[:1], [text], columns=1)
        for text in ("a red seven", "left of a blue", "two")
    ]
    for line, half in enumerate(halves):
        written = pixels(whole, PADDING, PADDING + 64 + LINE * line, 64, LINE)
        assert np.array_equal(written, pixels(half, PADDING, PADDING + 64, 64, LINE))
    first = captioned_grid(images, prompts, columns=2)
    assert first.height == 64 + LINE + 2 * PADDING


def test_the_caption_is_the_name_of_the_class() -> None:
    images = make_images(1, 64).expand(2, -1, -1, -1)
    pictures = [
        label_grid(images, torch.tensor([label, 0]), class_names=NAMES, columns=1)
        for label in (0, 1)
    ]
    lines = [pixels(picture, PADDING, PADDING + 64, 64, LINE) for picture in pictures]
    assert not np.array_equal(lines[0], lines[1])
    second = pixels(pictures[1], PADDING, 2 * (PADDING + 64) + LINE, 64, LINE)
    assert np.array_equal(lines[0], second)


def test_a_long_caption_is_cut_at_the_side_of_its_cell() -> None:
    images = make_images(2, 64)
    names = ["electric ray, crampfish, numbfish, torpedo", ""]
    picture = label_grid(images, torch.tensor([0, 1]), class_names=names, columns=2)
    beyond = pixels(picture, PADDING + 64, PADDING + 64, PADDING + 64, LINE)
    assert beyond.min() == 255


@pytest.mark.parametrize(
    "name", ["two\nlines", "\0\ud800\t", "\N{GRINNING FACE}", "$1_$5", "\u05d0"]
)
def test_any_class_name_makes_a_caption_of_one_line(name: str) -> None:
    labels = torch.tensor([0, 0])
    picture = label_grid(make_images(2, 64), labels, class_names=[name], columns=1)
    assert picture.size == (2 * PADDING + 64, PADDING + 2 * (64 + LINE + PADDING))


def test_compared_images_share_a_column_under_the_titles_of_their_rows() -> None:
    rows = {"originals": make_images(3, 64), "reconstructions": 255 - make_images(3, 64)}
    picture = comparison_grid(rows)
    step_x, step_y = 64 + PADDING, LINE + 64 + PADDING
    assert picture.size == (PADDING + 3 * step_x, PADDING + 2 * step_y)
    for row, images in enumerate(rows.values()):
        assert pixels(picture, 0, PADDING + row * step_y, 64, LINE).min() < 100
        for column, image in enumerate(images):
            x, y = PADDING + column * step_x, PADDING + row * step_y + LINE
            assert np.array_equal(pixels(picture, x, y, 64, 64), image.permute(1, 2, 0).numpy())


def test_the_same_picture_makes_the_same_bytes(tmp_path: Path) -> None:
    picture = comparison_grid({"originals": make_images(3, 8)})
    save_png(tmp_path / "folder" / "a.png", picture)
    save_png(tmp_path / "b.png", picture)
    content = (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "folder" / "a.png").read_bytes() == content
    with Image.open(tmp_path / "b.png") as image:
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image), np.asarray(picture))


def test_without_images_there_are_titles() -> None:
    picture = comparison_grid(
        {"originals": make_images(0, 8), "reconstructions": make_images(0, 8)}
    )
    assert picture.size == (PADDING + 64 + PADDING, PADDING + 2 * (LINE + 64 + PADDING))
    assert pixels(picture, 0, PADDING, 64, LINE).min() < 100
    assert pixels(picture, 0, PADDING + LINE, 64, 64).min() == 255
