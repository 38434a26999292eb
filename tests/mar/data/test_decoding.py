"""Files of every mode decode to the colours they show, and the centre crop is ADM's."""

import io
import re
import struct
import zlib
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mar.data import decoding
from mar.data.decoding import Inspection, center_crop, decode, halve, inspect, read_square
from mar.data.formats import EXPECTED


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


def find_fault(source: bytes) -> str | None:
    return inspect(source, 10**8).fault


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that claims a size and holds no pixels."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IEND", b"")]
    return png_file(parts)


def png_file(parts: list[tuple[bytes, bytes]]) -> bytes:
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


# Broken files


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "PPM", "WEBP", "GIF", "AVIF"])
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
        (bytes(99), f"nothing but zero bytes, expected {EXPECTED}"),
        (b"\x01\x02", f"not an image of a known format, expected {EXPECTED}"),
        (b'{"error": "not found"}\n', "text, expected "),
        (b"<?xml version='1.0'?><Error/>", "XML, expected "),
        (b"BZh91AY&SY", "bzip2, expected "),
        (b"II*\0\x10\0\0\0CR\x02\0", "Canon CR2, expected "),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript, expected "),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC, expected "),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "MP4 video, expected "),
        (b"\xff\x0a\xfa\x1f", "JPEG XL, expected "),
        (b"<?xml version='1.0'?><svg/>", "SVG, expected "),
        (b"<!DOCTYPE html><p>404", "HTML, expected "),
        (b"\0\x05\x16\x07\0\x02", "AppleDouble"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"\xff\xd8\xff\xe0\0", "a damaged JPEG image"),
        (png_header(0, 5), "a damaged PNG image"),
    ],
)
def test_what_is_no_image_is_refused_by_name_and_its_format_told(
    source: bytes, reason: str
) -> None:
    for used in (decode, lambda content, name: read_square(content, name, 8)):
        with pytest.raises(ValueError, match=rf"^a\.png: {re.escape(reason)}"):
            used(source, "a.png")


def test_avif_is_read_whatever_the_name_says() -> None:
    decoded = pixels(content(Image.new("RGB", (16, 16), (200, 100, 50)), "AVIF", quality=90))
    assert np.abs(decoded.astype(int) - [200, 100, 50]).max() <= 8


# Metadata


def png_of(values: np.ndarray, **options: Any) -> bytes:
    return content(Image.fromarray(values), "PNG", **options)


def flip(source: bytes, place: int, bit: int = 1) -> bytes:
    return source[:place] + bytes([source[place] ^ bit]) + source[place + 1 :]


def test_metadata_of_any_size_do_not_matter() -> None:
    values = noise(5, 7)
    texts = PngInfo()
    texts.add_text("a", "x" * 3_000_000, zip=True)
    for source in (png_of(values, icc_profile=bytes(1_200_000)), png_of(values, pnginfo=texts)):
        assert np.array_equal(pixels(source), values)
        assert find_fault(source) is None


@pytest.mark.parametrize("kind", [b"iCCP", b"tEXt", b"eXIf", b"pHYs"])
def test_damaged_metadata_do_not_matter(kind: bytes) -> None:
    values = noise(5, 7)
    texts = PngInfo()
    texts.add_text("a", "hello, world")
    exif = Image.Exif()
    exif[0x010E] = "a description"
    source = png_of(values, icc_profile=bytes(300), pnginfo=texts, exif=exif, dpi=(72, 72))
    broken = flip(source, source.index(kind) + 8)
    assert np.array_equal(pixels(broken), values)
    assert find_fault(broken) is None


def test_damaged_metadata_leave_the_orientation_as_it_is() -> None:
    values = noise(5, 7)
    exif = Image.Exif()
    exif[0x0112] = 6
    source = png_of(values, icc_profile=bytes(300), exif=exif)
    broken = flip(source, source.index(b"iCCP") + 8)
    assert np.array_equal(pixels(broken), np.rot90(values, -1))


# Damage


@pytest.mark.parametrize("part", [b"IHDR", b"PLTE", b"tRNS", b"IDAT"])
def test_a_png_with_a_flipped_bit_is_damaged(part: bytes) -> None:
    image = Image.fromarray(noise(64, 64)).quantize(256)
    source = content(image, "PNG", transparency=0)
    for offset in (5, 9):
        assert find_fault(flip(source, source.index(part) + offset)) is not None


JPEG_OPTIONS: list[dict[str, Any]] = [
    {},
    {"progressive": True},
    {"optimize": True},
    {"restart_marker_rows": 1},
    {"quality": 95, "subsampling": 0},
]


@pytest.mark.parametrize("options", JPEG_OPTIONS)
def test_a_jpeg_with_lost_bytes_is_damaged(options: dict[str, Any]) -> None:
    source = content(Image.fromarray(photograph(128)), "JPEG", **options)
    assert find_fault(source) is None
    for share in (0.3, 0.5, 0.7):
        place = int(share * len(source))
        for broken in (
            source[:place] + bytes(400) + source[place + 400 :],
            source[:place] + b"\xff\xd9",  # cut, and its end marker kept
        ):
            assert re.match("damaged: |.*truncated|broken", find_fault(broken) or "")
        if "progressive" not in options:
            dropped = source[:place] + source[place + 400 :]
            assert re.match("damaged: ", find_fault(dropped) or "")


@pytest.mark.parametrize("options", JPEG_OPTIONS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_sound_jpegs_are_not_called_damaged(options: dict[str, Any], mode: str) -> None:
    """Even areas are rows of zeros there, too, and some cameras fill up the end."""
    half_white = np.array(photograph(200))
    half_white[:120] = 255
    for values in (half_white, np.full((300, 300, 3), 128, dtype=np.uint8), noise(9, 17)):
        source = content(Image.fromarray(values).convert(mode), "JPEG", **options)
        filled = source[:-2] + bytes(20) + source[-2:]
        for sound in (source, filled, source + b"what comes after the end"):
            assert find_fault(sound) is None


def test_what_is_said_of_damage_goes_to_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    source = content(Image.fromarray(photograph(64)), "JPEG")
    assert find_fault(source[: len(source) // 2] + b"\xff\xd9") == (
        "damaged: premature end of data segment"
    )
    assert capfd.readouterr() == ("", "")


def photograph(size: int) -> np.ndarray:
    """Return noise on a smooth ramp, which JPEG needs many bytes for."""
    ramp = np.linspace(0, 200, size)[None, :, None]
    return (ramp + noise(size, size) * 0.2).astype(np.uint8)


# Size and range


def test_larger_images_than_allowed_are_told_apart() -> None:
    source = content(Image.new("L", (30, 20)), "PNG")
    assert inspect(source, 600).fault is None
    assert inspect(source, 599) == Inspection(
        "30 x 20 pixels, which are more than 599", too_large=True, brightest=ANY
    )
    bomb = inspect(png_header(50_000, 50_000), 10**9)
    assert bomb.too_large


def test_images_beyond_pillows_limit_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    source = content(Image.new("RGB", (10, 10), (1, 2, 3)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # Pillow refuses more than twice that
    assert pixels(source).shape == (10, 10, 3)
    assert read_square(source, "x", 10).shape == (3, 10, 10)
    assert Image.MAX_IMAGE_PIXELS == 20


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize(("highest", "share"), [(4095, 4095 / 65535), (65535, 1.0)])
def test_the_range_that_16_bits_use_is_measured(kind: str, highest: int, share: float) -> None:
    values = np.linspace(0, highest, 60).astype(np.uint16).reshape(6, 10)
    found = inspect(content(Image.fromarray(values), kind), 10**6)
    assert found.fault is None
    assert found.sixteen_bits
    assert found.brightest == pytest.approx(share)


def test_16_bits_of_colour_are_measured_as_well() -> None:
    rows = np.zeros((2, 1 + 3 * 6), dtype=np.uint8)  # a filter byte, and three pixels of 6 bytes
    rows[:, 1::2] = 15  # the higher bytes: of 12 bits, all there is
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", 3, 2, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows.tobytes())),
        (b"IEND", b""),
    ]
    found = inspect(png_file(parts), 10**6)
    assert (found.fault, found.sixteen_bits) == (None, True)
    assert found.brightest == pytest.approx(15 / 255)


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "LA", "1", "CMYK", "I;16"])
def test_halving_by_strips_is_halving_but_for_rounding(mode: str) -> None:
    values = noise(1100, 40)
    if mode == "I;16":
        image = Image.fromarray(values[..., 0].astype(np.uint16) * 200)
    elif mode == "RGBA":
        image = Image.fromarray(np.dstack([values, values[..., :1]]))
    else:
        image = Image.fromarray(values).convert(mode)
    whole = decode(content(image, "TIFF" if mode == "CMYK" else "PNG"), "x")
    expected = whole.resize((20, 550), Image.Resampling.BOX)
    assert np.abs(np.array(halve(image)).astype(int) - np.array(expected)).max() <= 1


def test_halving_by_strips_keeps_odd_sizes_in_place() -> None:
    ramp = np.linspace(0, 255, 2049).round().astype(np.uint8)[:, None].repeat(33, axis=1)
    halved = np.array(halve(Image.fromarray(ramp)))
    assert halved.shape == (1024, 16, 3)
    expected = np.linspace(0, 255, 1024)[:, None, None]
    assert np.abs(halved - expected).max() <= 1


def test_a_very_large_image_is_cropped_as_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    source = content(Image.fromarray(noise(64, 96)), "PNG", exif=exif)
    expected = read_square(source, "x", 16)
    assert torch.equal(expected, center_crop(decode(source, "x"), 16))
    monkeypatch.setattr(decoding, "LARGE", 1000)
    found = read_square(source, "x", 16)
    assert (found.int() - expected.int()).abs().max() <= 1


def test_a_file_is_read_from_its_path(tmp_path: Path) -> None:
    values = noise(3, 3)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.array_equal(np.array(decode(tmp_path / "a.png", "a.png")), values)
    with pytest.raises(ValueError, match=r"^gone\.png: No such file or directory$"):
        decode(tmp_path / "gone.png", "gone.png")


# Centre crop


# The weights of the bicubic filter (Keys, a = -1/2) for an enlargement by two, at distances of
# 1/4, 3/4, 5/4 and 7/4 pixels, in 128ths; they add up to 128.
NEAR, NEXT, OUTER, FAR = 111, 29, -9, -3


def test_enlarging_is_keys_cubic_convolution() -> None:
    row = np.array([10, 20, 60, 200, 90, 40], dtype=np.uint8)
    image = Image.fromarray(np.repeat(row[None], 6, axis=0)).convert("RGB")
    middle = center_crop(image, 12)[0, 5].tolist()
    left = FAR * 10 + NEXT * 20 + NEAR * 60 + OUTER * 200  # a quarter to the left of the 60
    right = OUTER * 20 + NEAR * 60 + NEXT * 200 + FAR * 90  # and to its right
    assert middle[4:6] == [round(left / 128), round(right / 128)]


def test_the_short_side_is_halved_until_it_is_less_than_twice_the_size() -> None:
    """At 8 pixels for 4 the box filter, the mean of two, at 7 the bicubic one, which overshoots."""
    edge = np.repeat(np.array([[0, 0, 0, 0, 255, 255, 255, 255]], dtype=np.uint8), 8, axis=0)
    exact = center_crop(Image.fromarray(edge).convert("RGB"), 4)[0, 0].tolist()
    assert exact == [0, 0, 255, 255]
    blocks = np.repeat(np.array([[10, 30, 50, 90, 200, 100, 8, 4]], dtype=np.uint8), 8, axis=0)
    assert center_crop(Image.fromarray(blocks).convert("RGB"), 4)[0, 0].tolist() == [20, 70, 150, 6]
    ramp = np.repeat(np.array([[100, 100, 100, 100, 200, 200, 200]], dtype=np.uint8), 7, axis=0)
    once = center_crop(Image.fromarray(ramp).convert("RGB"), 4)[0, 0].tolist()
    assert min(once) < 100  # halved first, all would be means of the values
    assert max(once) > 200


@given(side=st.integers(4, 90), extra=st.integers(0, 90), size=st.integers(2, 40))
def test_the_crop_lies_in_the_middle(side: int, extra: int, size: int) -> None:
    """A bright half meets a dark one there: both have the same share, to a pixel of the result."""
    values = np.zeros((side, side + 2 * extra), dtype=np.uint8)
    values[:, : values.shape[1] // 2] = 255
    cropped = center_crop(Image.fromarray(values).convert("RGB"), size)
    assert cropped.shape == (3, size, size)
    middle = 0.5 * values.shape[1] % 1  # an odd width has no middle between pixels
    allowed = 1 + middle * size / side + 2 * (size < side)
    assert abs(float(cropped[0].float().mean()) / 255 * size - size / 2) <= allowed
    assert torch.equal(cropped[0], cropped[2])


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
