"""Grids of images with captions, for people to look at.

Small images are enlarged by a whole factor without smoothing, so that pixels stay visible.

Shapes: B images, H height, W width.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Int, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mar.files.atomic import replacing


CELL = 64  # pixels: the smallest side of a cell
PADDING = 4
LINE = 14  # pixels of a line of text in PIL's default font
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def label_grid(
    images: UInt8[Tensor, "B 3 H W"],
    labels: Int[Tensor, " B"],
    *,
    class_names: Sequence[str],
    columns: int,
) -> Image.Image:
    """Show images in rows of `columns`, each with the name of its class below."""
    captions = [class_names[int(label)] for label in labels]
    return captioned_grid(images, captions, columns=columns)


def captioned_grid(
    images: UInt8[Tensor, "B 3 H W"], captions: Sequence[str], *, columns: int, lines: int = 1
) -> Image.Image:
    """Show images in rows of `columns`, each with its caption below.

    Args:
        images: To show.
        captions: Of each.
        columns: Images in a row.
        lines: Into at most how many lines a caption is broken; what does not fit is cut.
    """
    cells = _enlarge(images)
    width, height = cells[0].size
    broken = [_break(caption, width)[:lines] for caption in captions]
    room = LINE * max(1, *map(len, broken))
    step_x, step_y = width + PADDING, height + room + PADDING
    rows = math.ceil(len(cells) / columns)
    size = (PADDING + columns * step_x, PADDING + rows * step_y)
    picture = Image.new("RGB", size, WHITE)
    for number, (cell, texts) in enumerate(zip(cells, broken, strict=True)):
        row, column = divmod(number, columns)
        x, y = PADDING + column * step_x, PADDING + row * step_y
        picture.paste(cell, (x, y))
        for line, text in enumerate(texts):
            _write(picture, (x, y + height + LINE * line), text, width)
    return picture


def comparison_grid(rows: Mapping[str, UInt8[Tensor, "B 3 H W"]]) -> Image.Image:
    """Show rows of images, each below its title; the images of a column belong together."""
    strips = {title: _enlarge(images) for title, images in rows.items()}
    count, _, *sides = next(iter(rows.values())).shape
    height, width = (side * _factor(sides) for side in sides)
    step_x, step_y = width + PADDING, LINE + height + PADDING
    columns = max(count, 1)  # without images, room for the titles
    size = (PADDING + columns * step_x, PADDING + len(strips) * step_y)
    picture = Image.new("RGB", size, WHITE)
    for row, (title, strip) in enumerate(strips.items()):
        y = PADDING + row * step_y
        _write(picture, (PADDING, y), title, size[0] - 2 * PADDING)
        for column, cell in enumerate(strip):
            picture.paste(cell, (PADDING + column * step_x, y + LINE))
    return picture


def one_line(text: str) -> str:
    """Return text that every font can be asked to draw: spaces stand for what is not printable.

    A class may be called anything that a file system or a table can hold, line breaks included.
    """
    return "".join(letter if letter.isprintable() else " " for letter in text)


def save_png(path: Path, picture: Image.Image) -> None:
    """Write a picture; the same picture gives the same bytes."""
    with replacing(path) as partial:
        picture.save(partial, format="PNG")


def _enlarge(images: UInt8[Tensor, "B 3 H W"]) -> list[Image.Image]:
    factor = _factor(images.shape[-2:])
    pixels = images.permute(0, 2, 3, 1).contiguous().cpu()  # (B, H, W, 3)
    pixels = torch.repeat_interleave(torch.repeat_interleave(pixels, factor, 1), factor, 2)
    return [Image.fromarray(image.numpy()) for image in pixels]


def _factor(sides: Sequence[int]) -> int:
    return math.ceil(CELL / min(sides))


def _break(text: str, width: int) -> list[str]:
    """Return the lines of a text, each of as many words as fit, or of one that does not."""
    font = ImageFont.load_default()
    lines: list[str] = []
    for word in one_line(text).split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _write(picture: Image.Image, position: tuple[int, int], text: str, width: int) -> None:
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default()
    kept = one_line(text)
    while kept and draw.textlength(kept, font=font) > width:
        kept = kept[:-1]
    draw.text(position, kept, fill=BLACK, font=font)
