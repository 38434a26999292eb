"""Image files of any mode as square RGB tensors.

Shapes: B batch, H W height and width, S side of a square image, all in pixels.
"""

import io
import warnings
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor


# Only these: of the other formats that Pillow knows, some run programs (EPS).
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

# EXIF orientation -> how to turn the stored pixels upright (EXIF 2.32, section 4.6.4).
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

MAX_ASPECT = 16


def decode(source: bytes | Path, name: str) -> Image.Image:
    """Decode an image file, or its content, into upright RGB.

    Transparency shows white. 16-bit grey is scaled to 8 bits, not clipped. CMYK is converted by
    the plain formula and colour profiles are ignored, as in torchvision and in ADM's loader.

    Raises:
        ValueError: the content is no image, broken, or of more than 179 million pixels; the
            message begins with `name`.
    """
    try:
        content = source if isinstance(source, bytes) else source.read_bytes()
    except OSError as error:
        raise ValueError(f"{name}: {error.strerror}") from None
    try:
        return _decode(content)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def find_fault(content: bytes) -> str | None:
    """Return why `decode` would refuse the content of a file, or None.

    All of the file is decoded, but JPEG at an eighth of its size, which takes half the time.
    """
    try:
        _decode(content, reduced=True)
    except ValueError as error:
        return str(error)
    return None


def center_crop(image: Image.Image, size: int) -> UInt8[Tensor, "3 S S"]:
    """Scale the short side of an RGB image to `size` and cut out the middle.

    ADM's centre crop (guided-diffusion, `center_crop_arr`), on which the published FIDs rest: halve
    with a box filter while the short side is at least twice the size, then resize with the bicubic
    filter. Smaller images are enlarged.
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


def to_float(images: UInt8[Tensor, "B 3 H W"]) -> Float32[Tensor, "B 3 H W"]:
    """Map bytes to [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Float32[Tensor, "B 3 H W"]) -> UInt8[Tensor, "B 3 H W"]:
    """Map [-1, 1] to bytes: the nearest one, and what lies outside is clipped.

    Raises:
        ValueError: a value is NaN, which would turn into a black pixel without a word.
    """
    if images.isnan().any():
        broken = int(images.isnan().flatten(1).any(dim=1).sum())
        raise ValueError(f"{broken} of {len(images)} images hold nan")
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _decode(content: bytes, reduced: bool = False) -> Image.Image:
    if not content:
        raise ValueError("the file is empty")
    with warnings.catch_warnings():
        # About metadata that we do not use, and sizes that are large but below Pillow's limit.
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                if reduced:
                    image.draft(None, (1, 1))
                image.load()
                return _upright(_to_rgb(image), _orientation(image))
        except UnidentifiedImageError:
            raise ValueError("not a BMP, GIF, JPEG, PNG, PPM, TIFF or WebP image") from None
        except MemoryError:
            raise  # says nothing about the file
        except Exception as error:  # Pillow's decoders raise a dozen types for broken content
            text = " ".join(str(error).split())
            raise ValueError(text or type(error).__name__) from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _scale_to_8_bits(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose white is unknown")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(image, mask=image.getchannel("A"))
    return canvas


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Scale grey values of 16 bits; Pillow's own conversion clips them at 255."""
    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:  # 32-bit files say nothing about their range
        raise ValueError(f"grey values from {low} to {high}, expected 0 to 65535")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))  # 65535 = 255 * 257


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken EXIF is common in good photographs, and says nothing about them
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(turn)


def _limit_aspect(image: Image.Image) -> Image.Image:
    """Cut the ends off a strip so long that enlarging it would fill the memory (not in ADM)."""
    longest = MAX_ASPECT * min(image.size)
    width, height = min(image.width, longest), min(image.height, longest)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
