"""Samples in the layouts of other programs, written in constant memory, whole or not at all.

Shapes: B images, H height, W width.
"""

import io
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from mar.files.atomic import replacing
from mar.sampling.store import SampleSet


OnImages = Callable[[np.ndarray], None]


def write_npz(samples: SampleSet, path: Path, on_images: OnImages = lambda _: None) -> None:
    """Write all samples as one file of the ADM suite (`openai/guided-diffusion`, evaluations).

    `arr_0` holds the images (uint8, (B, H, W, 3)) and `arr_1` the labels (int64), uncompressed, as
    `numpy.savez` writes them. The same samples give the same bytes.

    Args:
        samples: What is written.
        path: The file; one that is there is replaced.
        on_images: Is called with the images of each part that is written, (B, H, W, 3).

    Raises:
        UnwritableError: the disk is full, or refuses the file.
    """
    shape = (len(samples), samples.height, samples.width, 3)
    labels = samples.labels.numpy()
    with replacing(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as member:
            member.write(_header(np.dtype(np.uint8), shape))
            for images in samples.arrays():
                member.write(np.ascontiguousarray(images).data)
                on_images(images)
        with archive.open(zipfile.ZipInfo("arr_1.npy"), "w", force_zip64=True) as member:
            member.write(_header(labels.dtype, labels.shape))
            member.write(np.ascontiguousarray(labels).data)


def write_pictures(samples: SampleSet, folder: Path, on_images: OnImages = lambda _: None) -> None:
    """Write each sample as a PNG file named by its index, and their classes as `labels.csv`.

    Args:
        samples: What is written.
        folder: A new or empty folder.
        on_images: Is called with the images of each part that is written, (B, H, W, 3).

    Raises:
        ValueError: the folder holds something.
        OSError: the disk is full, or refuses a file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not an empty folder")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a start that was killed
    partial.mkdir(parents=True)
    try:
        rows = ["file,label"]
        for images in samples.arrays():
            for image in images:
                name = f"{len(rows) - 1:06d}.png"
                Image.fromarray(image).save(partial / name)
                rows.append(f"{name},{int(samples.labels[len(rows) - 1])}")
            on_images(images)
        (partial / "labels.csv").write_text("\n".join([*rows, ""]))
        if folder.exists():
            folder.rmdir()
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """Return what stands in front of an array in a `.npy` file."""
    content = io.BytesIO()
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(content, header)
    return content.getvalue()
