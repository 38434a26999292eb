"""Samples in the layouts of other programs, written in constant memory, whole or not at all.

Shapes: B images, H height, W width.
"""

import io
import json
import shutil
import zipfile
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from mar.files import atomic
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
    """Write each sample as a PNG file named by its index, and what they are of.

    The classes are in `labels.csv`; of images from prompts, these are in `metadata.jsonl`.

    Args:
        samples: What is written.
        folder: A new or empty folder.
        on_images: Is called with the images of each part that is written, (B, H, W, 3).

    Raises:
        ValueError: the folder holds something.
        OSError: the disk is full, or refuses a file.
    """
    names = [f"{index:06d}.png" for index in range(len(samples))]
    with _new_folder(folder) as partial:
        written = iter(names)
        for images in samples.arrays():
            for image in images:
                Image.fromarray(image).save(partial / next(written))
            on_images(images)
        if samples.prompts is not None:
            write_captions(partial, names, samples.prompts, samples.sources)
            return
        labels = samples.labels.numpy()
        rows = [f"{name},{label}" for name, label in zip(names, labels, strict=True)]
        (partial / "labels.csv").write_text("\n".join(["file,label", *rows, ""]))


def write_geneval(
    samples: SampleSet, folder: Path, lines: Sequence[str], on_images: OnImages = lambda _: None
) -> None:
    """Write the samples as GenEval's published evaluation reads them, a folder for each prompt.

    `00000/metadata.jsonl` is what the images of the first prompt must show, and they are
    `00000/samples/0000.png`, `0001.png`, and so on.

    Args:
        samples: What is written.
        folder: A new or empty folder.
        lines: What each sample must show, as a line of GenEval's files; images of one prompt have
            the same.
        on_images: Is called with the images of each part that is written, (B, H, W, 3).

    Raises:
        ValueError: the folder holds something.
        OSError: the disk is full, or refuses a file.
    """
    counts = dict.fromkeys(lines, 0)
    folders = {line: f"{number:05d}" for number, line in enumerate(counts)}
    with _new_folder(folder) as partial:
        for line, name in folders.items():
            (partial / name / "samples").mkdir(parents=True)
            atomic.write_text(partial / name / "metadata.jsonl", f"{line}\n")
        remaining = iter(lines)
        for images in samples.arrays():
            for image in images:
                line = next(remaining)
                path = partial / folders[line] / "samples" / f"{counts[line]:04d}.png"
                Image.fromarray(image).save(path)
                counts[line] += 1
            on_images(images)


def require_new(folder: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        ValueError: it does, or is a file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not an empty folder")


@contextmanager
def _new_folder(folder: Path) -> Generator[Path]:
    """Yield a folder to write to, which takes the place of a new or empty one when it is whole."""
    require_new(folder)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a start that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            folder.rmdir()
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_captions(
    folder: Path,
    names: Sequence[str],
    captions: Sequence[str],
    sources: Sequence[str] | None = None,
) -> None:
    """Write captions of image files as `metadata.jsonl`, a layout of Hugging Face.

    Args:
        folder: Where the images are.
        names: Of their files (`file_name`).
        captions: Of each (`text`).
        sources: The real image that has the caption (`source`), if there is one.
    """
    columns = {"file_name": names, "text": captions}
    if sources is not None:
        columns["source"] = sources
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    atomic.write_text(folder / "metadata.jsonl", "\n".join([*lines, ""]))


def _header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """Return what stands in front of an array in a `.npy` file."""
    content = io.BytesIO()
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(content, header)
    return content.getvalue()
