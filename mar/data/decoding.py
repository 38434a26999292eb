"""Image files of any mode as square RGB tensors.

Shapes: S side of a square image in pixels.
"""

import io
import math
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from mar.data import jpeg, png
from mar.data.formats import FORMATS, describe_unknown


T = TypeVar("T")

MAX_ASPECT = 16
LARGE = 2**25  # pixels, from which on an image is made smaller strip by strip, to save memory
STRIP = 512  # rows of such a strip, when it is made smaller


class TooLargeError(ValueError):
    """An image has more pixels than are allowed."""


class Inspection(NamedTuple):
    """What is known of an image file after it was decoded once.

    Attributes:
        fault: Why it cannot be used, or None.
        too_large: Whether that is its number of pixels.
        sixteen_bits: Whether its samples have 16 bits.
        brightest: The largest value of all, as a share of the largest possible one; NaN where it is
            not measured.
    """

    fault: str | None
    too_large: bool = False
    sixteen_bits: bool = False
    brightest: float = math.nan


def decode(source: bytes | Path, name: str) -> Image.Image:
    """Decode an image file, or its content, into upright RGB.

    Transparency shows white. 16-bit grey is scaled to 8 bits, not clipped. CMYK is converted by
    the plain formula and colour profiles are ignored, as in torchvision and in ADM's loader.

    Raises:
        ValueError: the content is no image or broken; the message begins with `name`.
    """
    try:
        content = source if isinstance(source, bytes) else source.read_bytes()
    except OSError as error:
        raise ValueError(f"{name}: {error.strerror}") from None
    return _named(name, content, _upright_rgb)


def read_square(content: bytes, name: str, size: int) -> UInt8[Tensor, "3 S S"]:
    """Decode the content of an image file and cut out the middle, as `center_crop` does.

    An image of more than 34 million pixels is halved strip by strip, so that the whole of it is
    never held in RGB; values may then differ by one from those of `center_crop`.

    Raises:
        ValueError: the content is no image or broken; the message begins with `name`.
    """
    return _named(name, content, partial(_square, size=size))


def _square(image: Image.Image, size: int) -> UInt8[Tensor, "3 S S"]:
    return center_crop(_upright_rgb(image, size), size)


def inspect(content: bytes, max_pixels: int) -> Inspection:
    """Decode the content of a file once, and tell whether it can be used.

    All of the file is decoded, but JPEG for Pillow at an eighth of its size, as libjpeg decodes it
    once more to find damage.
    """
    try:
        sixteen_bits, brightest = _read(content, _survey, max_pixels)
    except TooLargeError as error:
        return Inspection(str(error), too_large=True)
    except ValueError as error:
        return Inspection(str(error))
    fault = None
    if content.startswith(b"\xff\xd8"):
        fault = jpeg.find_damage(content)
    elif png.is_png(content):
        fault = png.find_damage(content)
        sixteen_bits = png.bit_depth(content) == 16
    return Inspection(fault, sixteen_bits=sixteen_bits, brightest=brightest)


# `center_crop` follows guided-diffusion's `center_crop_arr`: Copyright (c) 2021 OpenAI, under the
# MIT License, whose terms are in LICENSE.


def center_crop(image: Image.Image, size: int) -> UInt8[Tensor, "3 S S"]:
    """Scale the short side of an RGB image to `size` and cut out the middle.

    ADM's centre crop (guided-diffusion, `center_crop_arr`), on which the published FIDs rest: halve
    with a box filter while the short side is at least twice the size, then resize with the bicubic
    filter. Smaller images are enlarged. Unlike ADM, strips longer than 16 times their width lose
    their ends first.
    """
    assert image.mode == "RGB"
    image = _limit_aspect(image)
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    scaled = (round(image.width * scale), round(image.height * scale))
    image = image.resize(scaled, Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    image = image.crop((left, top, left + size, top + size))
    return torch.asarray(np.array(image)).permute(2, 0, 1).contiguous()  # (3, S, S)


def halve(image: Image.Image) -> Image.Image:
    """Return an image in RGB at half its size, as `center_crop` halves it, but strip by strip.

    Some values differ by one: Pillow takes rows or columns first, whichever is quicker for a shape,
    and rounds in between.
    """
    width, height = image.width // 2, image.height // 2
    step = image.height / height
    halved = Image.new("RGB", (width, height))
    for top in range(0, height, STRIP):
        bottom = min(top + STRIP, height)
        first, last = math.floor(top * step), min(math.ceil(bottom * step), image.height)
        strip = _to_rgb(image.crop((0, first, image.width, last)))
        box = (0, top * step - first, image.width, min(bottom * step - first, last - first))
        strip = strip.resize((width, bottom - top), Image.Resampling.BOX, box=box)
        halved.paste(strip, (0, top))
    return halved


def _named(name: str, content: bytes, use: Callable[[Image.Image], T]) -> T:
    try:
        return _read(content, use)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _read(content: bytes, use: Callable[[Image.Image], T], max_pixels: int | None = None) -> T:
    """Return what `use` makes of an opened image.

    Raises:
        ValueError: it cannot be decoded, or has more than `max_pixels`.
    """
    if not content:
        raise ValueError("the file is empty")
    try:
        return _open(content, use, max_pixels)
    except (MemoryError, TooLargeError):
        raise  # says nothing about what the file holds
    except Exception as error:  # Pillow's decoders raise a dozen types for broken content
        if png.is_png(content) and (bare := png.without_metadata(content)) != content:
            return _read(bare, use, max_pixels)
        if isinstance(error, UnidentifiedImageError):
            raise ValueError(describe_unknown(content)) from None
        text = " ".join(str(error).split())
        raise ValueError(text or type(error).__name__) from None


def _open(content: bytes, use: Callable[[Image.Image], T], max_pixels: int | None) -> T:
    with warnings.catch_warnings(), _pillow_unlimited():
        warnings.simplefilter("ignore")  # about metadata that we do not use
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if max_pixels is not None and image.width * image.height > max_pixels:
                raise TooLargeError(
                    f"{image.width} x {image.height} pixels, which are more than {max_pixels}"
                )
            return use(image)


@contextmanager
def _pillow_unlimited() -> Generator[None]:
    """Lift Pillow's own limit of pixels, which is fixed: `max_pixels` is ours.

    Only where files are checked: later on their digests say that they are those checked.
    """
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _survey(image: Image.Image) -> tuple[bool, float]:
    """Load an image; tell whether its samples have 16 bits, and its largest value."""
    if image.format == "JPEG":
        image.draft(None, (1, 1))
    bits = _bits_of_tiff(image) if image.format == "TIFF" else 8
    image.load()
    if _is_wide(image):
        low, high = _extremes(image)
        return high > 255 or low < 0, high / 65535
    if image.mode == "F":
        _to_rgb(image)  # says what is wrong
    if image.mode not in ("L", "LA", "RGB", "RGBA", "RGBX"):
        return bits == 16, math.nan
    colours = [band for band in image.getbands() if band not in "AX"]
    extremes = np.array(image.getextrema()).reshape(-1, 2)[: len(colours)]
    return bits == 16, float(extremes.max()) / 255


def _bits_of_tiff(image: Image.Image) -> int:
    bits = np.array(image.getexif().get(ExifTags.Base.BitsPerSample, 8))
    return int(bits.max())


def _upright_rgb(image: Image.Image, size: int | None = None) -> Image.Image:
    """Load an image, and return it in RGB and upright, at half its size if it is very large."""
    image.load()
    large = image.width * image.height > LARGE
    if size is not None and large and min(image.size) >= 2 * size:
        return _upright(halve(image), _orientation(image))
    return _upright(_to_rgb(image), _orientation(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    if _is_wide(image):
        image = _scale_to_8_bits(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose white is unknown")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(image, mask=image.getchannel("A"))
    return canvas


def _is_wide(image: Image.Image) -> bool:
    """Tell whether grey values may exceed 255."""
    return image.mode == "I" or image.mode.startswith("I;16")


def _extremes(image: Image.Image) -> tuple[int, int]:
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:  # 32-bit files say nothing about their range
        raise ValueError(f"grey values from {low} to {high}, expected 0 to 65535")
    return low, high


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Scale grey values of 16 bits; Pillow's own conversion clips them at 255."""
    _extremes(image)
    values = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))  # 65535 = 255 * 257


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken EXIF is common in good photographs, and says nothing about them
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turn an image upright; from its EXIF data Pillow sees no more than the orientation."""
    image.info.clear()
    image.getexif()[ExifTags.Base.Orientation] = orientation
    ImageOps.exif_transpose(image, in_place=True)
    return image


def _limit_aspect(image: Image.Image) -> Image.Image:
    """Cut the ends off a strip so long that enlarging it would fill the memory (not in ADM)."""
    longest = MAX_ASPECT * min(image.size)
    if max(image.size) <= longest:
        return image
    width, height = min(image.width, longest), min(image.height, longest)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
