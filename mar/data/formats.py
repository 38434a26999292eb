"""Which image formats are read, and what a file that is none of them seems to be."""

import codecs

from PIL import features


# Only these: of the other formats that Pillow knows, some run programs (EPS).
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP") + (
    ("AVIF",) if features.check("avif") else ()
)
EXTENSIONS = (  # torchvision's IMG_EXTENSIONS, and those of formats that we read besides
    ".jpg",
    ".jpeg",
    ".jfif",
    ".gif",
    ".png",
    ".ppm",
    ".bmp",
    ".pgm",
    ".tif",
    ".tiff",
    ".webp",
) + ((".avif",) if "AVIF" in FORMATS else ())

EXPECTED = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"

# The first bytes of formats, longer ones before those that they begin with.
SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0\x10\0\0\0CR", "Canon CR2"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"P2", "PPM"),
    (b"P3", "PPM"),
    (b"P5", "PPM"),
    (b"P6", "PPM"),
    (b"P4\n", "PPM"),
    (b"P7\n", "PAM"),
    (b"PF\n", "PFM"),
    (b"Pf\n", "PFM"),
    (b"FUJIFILMCCD-RAW", "Fujifilm RAF"),
    (b"IIRO", "Olympus ORF"),
    (b"IIU\0", "Panasonic RW2"),
    (b"gimp xcf", "GIMP's XCF"),
    (b"BPG\xfb", "BPG"),
    (b"\x01\xda", "SGI"),
    (b"\x0a\x05\x01\x08", "PCX"),
    (b"II+\0", "BigTIFF"),
    (b"MM\0+", "BigTIFF"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"II\xbc\x01", "JPEG XR"),
    (b"8BPS", "Photoshop"),
    (b"%PDF", "PDF"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"SIMPLE  =", "FITS"),
    (b"qoif", "QOI"),
    (b"DDS ", "DDS"),
    (b"\0\0\x01\0", "icon (ICO)"),
    (b"\x93NUMPY", "NumPy"),
    (b"\x89HDF", "HDF5"),
    (b"PAR1", "Parquet"),
    (b"PK\x03\x04", "ZIP"),
    (b"\x1f\x8b", "gzip"),
    (b"Rar!", "RAR"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"\x1aE\xdf\xa3", "Matroska video"),
    (b"\0\x05\x16\x07", "AppleDouble (what macOS keeps beside a file)"),
    (b"version https://git-lfs", "Git LFS pointer (`git lfs pull` fetches the image)"),
)
BRANDS = {  # of the ISO base media file format: bytes 8 to 12, after "ftyp"
    b"avif": "AVIF",
    b"avis": "AVIF",
    b"heic": "HEIC",
    b"heix": "HEIC",
    b"heim": "HEIC",
    b"heis": "HEIC",
    b"hevc": "HEIC",
    b"hevx": "HEIC",
    b"mif1": "HEIF",
    b"msf1": "HEIF",
    b"crx ": "Canon CR3",
    b"qt  ": "QuickTime video",
}


UTF_8 = codecs.getincrementaldecoder("utf-8-sig")  # which lets a last letter be cut


def find_format(content: bytes) -> str | None:
    """Return the name of the format that a file's first bytes belong to, or None."""
    if content[4:8] == b"ftyp":
        return BRANDS.get(content[8:12], "MP4 video")
    if content[:4] == b"RIFF":
        return {b"WEBP": "WEBP", b"AVI ": "AVI video"}.get(content[8:12], "RIFF")
    if content[128:132] == b"DICM":
        return "DICOM"
    for signature, name in SIGNATURES:
        if content.startswith(signature):
            return name
    start = content[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<svg", b"<?xml")) and b"<svg" in content[:4096].lower():
        return "SVG"
    if start.startswith((b"<!doctype html", b"<html")):
        return "HTML"
    if start.startswith(b"<?xml"):
        return "XML"
    return "text" if _is_text(content[:512]) else None


def _is_text(start: bytes) -> bool:
    """Tell whether the first bytes of a file are words, as of an error in place of a download."""
    try:
        text = UTF_8().decode(start)
    except UnicodeDecodeError:
        return False
    return bool(text.strip()) and all(c.isprintable() or c in "\t\r\n" for c in text)


def describe_unknown(content: bytes) -> str:
    """Say what a file is that no decoder accepts."""
    found = find_format(content)
    if found in FORMATS:
        return f"a damaged {found} image"
    if found is not None:
        return f"{found}, expected {EXPECTED}"
    if not content.strip(b"\0"):
        return f"nothing but zero bytes, expected {EXPECTED}"
    return f"not an image of a known format, expected {EXPECTED}"
