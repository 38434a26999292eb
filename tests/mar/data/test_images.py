"""Files of every mode decode to the colours they show, and the centre crop is ADM's."""

import io
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mar.data.images import center_crop, decode, find_fault, to_float, to_uint8


LOSSLESS = ["PNG", "TIFF", "BMP", "PPM"]


def content(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(source: bytes) -> np.ndarray:
    image = decode(source, "x")
    assert image.mode == "RGB"
    return np.array(image)


def noise(height: int, width: int) -> np.ndarray:
    rng = torch.Generator().manual_seed(0)
    size = (height, width, 3)
    return torch.randint(256, size, generator=rng, dtype=torch.uint8).numpy()


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that claims a size and holds no pixels."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IEND", b"")]
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


# Modes


@pytest.mark.parametrize("kind", LOSSLESS)
def test_rgb_keeps_its_values(kind: str) -> None:
    values = noise(5, 7)
    assert np.array_equal(pixels(content(Image.fromarray(values), kind)), values)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_grey_is_the_same_in_all_channels(kind: str) -> None:
    values = noise(5, 7)[..., 0]
    decoded = pixels(content(Image.fromarray(values), kind))
    assert np.array_equal(decoded, np.stack([values] * 3, axis=-1))


@pytest.mark.parametrize("kind", LOSSLESS)
def test_one_bit_is_black_and_white(kind: str) -> None:
    image = Image.fromarray(np.array([[False, True, True]]))
    assert image.mode == "1"
    assert pixels(content(image, kind))[0].tolist() == [[0] * 3, [255] * 3, [255] * 3]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "GIF", "BMP"])
def test_palette_shows_its_colours(kind: str) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([1, 0])
    assert pixels(content(image, kind)).tolist() == [[[200, 100, 50], [10, 20, 30]]]


@pytest.mark.parametrize("transparency", [0, bytes([0, 255])])
def test_transparent_palette_entry_shows_white(transparency: int | bytes) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([1, 0])
    decoded = pixels(content(image, "PNG", transparency=transparency))
    assert decoded.tolist() == [[[200, 100, 50], [255] * 3]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_transparency_shows_white(kind: str) -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(255, 0, 0, 255), (255, 0, 0, 0), (255, 0, 0, 51)])
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    expected = [[[255, 0, 0], [255, 255, 255], [255, 204, 204]]]  # 51 is a fifth of 255
    assert pixels(content(image, kind, **options)).tolist() == expected


def test_transparent_grey_shows_white() -> None:
    image = Image.new("LA", (2, 1))
    image.putdata([(100, 255), (0, 51)])
    assert pixels(content(image, "PNG")).tolist() == [[[100] * 3, [204] * 3]]


def test_a_colour_declared_transparent_shows_white() -> None:
    image = Image.new("RGB", (2, 1))
    image.putdata([(1, 2, 3), (4, 5, 6)])
    decoded = pixels(content(image, "PNG", transparency=(1, 2, 3)))
    assert decoded.tolist() == [[[255] * 3, [4, 5, 6]]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    values = np.array([[0, 255, 257, 32767, 32768, 65535]], dtype=np.uint16)
    decoded = pixels(content(Image.fromarray(values), kind))
    assert decoded[0, :, 0].tolist() == [0, 1, 1, 127, 128, 255]


def test_16_bit_grey_is_scaled_in_the_other_byte_orders() -> None:
    values = np.array([[0, 257, 32768, 65535]], dtype=">u2")
    pgm = b"P5 4 1 65535\n" + values.tobytes()
    tiff = content(Image.frombytes("I;16B", (4, 1), values.tobytes()), "TIFF")
    assert pixels(pgm)[0, :, 0].tolist() == [0, 1, 128, 255]
    assert pixels(tiff)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_grey_of_an_unknown_range_is_refused() -> None:
    wide = content(Image.fromarray(np.array([[0, 70000]], dtype=np.int32)), "TIFF")
    with pytest.raises(ValueError, match=r"^a\.tif: grey values from 0 to 70000, expected 0 to "):
        decode(wide, "a.tif")
    real = content(Image.fromarray(np.array([[0.0, 1.0]], dtype=np.float32)), "TIFF")
    with pytest.raises(ValueError, match=r"^a\.tif: floating-point pixels, whose white is unknown"):
        decode(real, "a.tif")


def test_cmyk_red_is_red() -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert (pixels(content(image, "TIFF")) == [255, 0, 0]).all()
    jpeg = content(image, "JPEG", quality=100)
    assert b"Adobe" in jpeg  # its values are stored inverted
    assert np.abs(pixels(jpeg).astype(int) - [255, 0, 0]).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
def test_exif_rotated_image_equals_the_upright_one(kind: str, orientation: int) -> None:
    stored = np.kron(noise(2, 3), np.ones((16, 16, 1), dtype=np.uint8))
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.swapaxes(0, 1),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(stored),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    decoded = pixels(content(Image.fromarray(stored), kind, exif=exif, **options))
    assert decoded.shape == upright.shape
    assert np.abs(decoded.astype(int) - upright).max() <= (2 if kind == "JPEG" else 0)


def test_broken_exif_is_ignored() -> None:
    image = Image.new("RGB", (8, 8), (10, 20, 30))
    jpeg = content(image, "JPEG", quality=100, exif=b"Exif\0\0no such thing")
    assert np.abs(pixels(jpeg).astype(int) - [10, 20, 30]).max() <= 2


def test_large_images_below_the_limit_decode_without_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = content(Image.new("RGB", (10, 10)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)  # Pillow warns above it, stops above twice
    assert pixels(source).shape == (10, 10, 3)


# Broken files


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "PPM", "WEBP", "GIF"])
def test_truncated_files_are_refused_by_name(kind: str) -> None:
    whole = content(Image.fromarray(noise(64, 64)), kind)
    assert find_fault(whole) is None
    for share in (0.2, 0.5, 0.9):
        broken = whole[: int(share * len(whole))]
        fault = find_fault(broken)
        assert fault
        with pytest.raises(ValueError, match=f"^{re.escape(f'cat/1.x: {fault}')}$"):
            decode(broken, "cat/1.x")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (b"", "the file is empty"),
        (b"hello", "not a BMP, GIF, JPEG, PNG, PPM, TIFF or WebP image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a BMP, GIF, JPEG"),
        (png_header(0, 5), "not a BMP, GIF, JPEG, PNG, PPM, TIFF or WebP image"),
        (png_header(50_000, 50_000), r"Image size \(2500000000 pixels\) exceeds limit"),
    ],
    ids=["empty", "text", "a program", "zero size", "bomb"],
)
def test_what_is_no_image_is_refused_by_name(source: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"^a\.png: {reason}"):
        decode(source, "a.png")


def test_a_file_is_read_from_its_path(tmp_path: Path) -> None:
    values = noise(3, 3)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.array_equal(np.array(decode(tmp_path / "a.png", "a.png")), values)
    with pytest.raises(ValueError, match=r"^gone\.png: No such file or directory$"):
        decode(tmp_path / "gone.png", "gone.png")


# Centre crop


def adm(image: Image.Image, size: int) -> np.ndarray:
    """Halve, scale and crop, step by step as guided-diffusion describes it."""
    short = min(image.width, image.height)
    while short >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
        short = min(image.width, image.height)
    factor = size / short
    image = image.resize(
        (round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC
    )
    values = np.array(image)
    top, left = (len(values) - size) // 2, (len(values[0]) - size) // 2
    return values[top : top + size, left : left + size]


@given(height=st.integers(5, 80), width=st.integers(5, 80), size=st.integers(1, 40))
def test_center_crop_is_adms(height: int, width: int, size: int) -> None:
    image = Image.fromarray(noise(height, width))
    cropped = center_crop(image, size)
    assert cropped.shape == (3, size, size)
    assert np.array_equal(cropped.permute(1, 2, 0).numpy(), adm(image, size))


def test_a_fourth_of_the_size_is_the_mean_of_blocks() -> None:
    blocks = noise(3, 3)
    image = Image.fromarray(np.kron(blocks, np.ones((4, 4, 1), dtype=np.uint8)))
    assert np.array_equal(center_crop(image, 3).permute(1, 2, 0).numpy(), blocks)


def test_a_wide_image_of_the_right_height_is_only_cut() -> None:
    values = noise(4, 12)
    cropped = center_crop(Image.fromarray(values), 4)
    assert np.array_equal(cropped.permute(1, 2, 0).numpy(), values[:, 4:8])


def test_an_odd_margin_leaves_the_larger_part_below() -> None:
    values = noise(7, 4)
    cropped = center_crop(Image.fromarray(values), 4)
    assert np.array_equal(cropped.permute(1, 2, 0).numpy(), values[1:5])


def test_a_smaller_image_is_enlarged_by_the_bicubic_filter() -> None:
    edge = Image.fromarray(np.repeat(np.array([[[100] * 3, [200] * 3]], dtype=np.uint8), 2, axis=0))
    row = center_crop(edge, 8)[0, 3].tolist()
    assert min(row) < 100  # a bilinear filter would not overshoot
    assert [300 - value for value in reversed(row)] == row  # symmetric about the edge
    colour = torch.tensor([9, 8, 7], dtype=torch.uint8).reshape(3, 1, 1)
    plain = Image.new("RGB", (2, 2), (9, 8, 7))
    assert torch.equal(center_crop(plain, 8), colour.expand(3, 8, 8))


def test_a_strip_needs_no_memory_for_the_ends_that_are_cut_off() -> None:
    strip = Image.new("RGB", (1_000_000, 1), (1, 2, 3))
    cropped = center_crop(strip, 64)  # scaled as a whole, it would be 16 GB
    colour = torch.tensor([1, 2, 3], dtype=torch.uint8).reshape(3, 1, 1)
    assert torch.equal(cropped, colour.expand(3, 64, 64))


# Tensors


def test_bytes_survive_the_round_trip() -> None:
    images = torch.arange(256, dtype=torch.uint8).expand(1, 3, 2, 256)
    floats = to_float(images)
    assert floats.min() == -1
    assert floats.max() == 1
    assert torch.equal(to_uint8(floats), images)


def test_values_round_to_the_nearest_byte_and_are_clipped() -> None:
    values = torch.tensor([-9.0, -1.0, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1, 1.0, float("inf")])
    assert to_uint8(values.expand(1, 3, 1, 6))[0, 0, 0].tolist() == [0, 0, 0, 1, 255, 255]


def test_nan_is_refused() -> None:
    images = torch.zeros(3, 3, 2, 2)
    images[1, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"^1 of 3 images hold nan$"):
        to_uint8(images)
