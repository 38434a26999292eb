"""Write the generated images for other programs: `python -m stages.export_samples TARGET`.

A TARGET that ends in `.npz` is a file of the ADM suite, any other a folder of PNG files with their
classes or prompts. It is no stage of `dvc.yaml`: nothing here depends on what others do with the
files.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from mar.sampling.blank import BlankCounts, count_blank
from mar.sampling.export import write_npz, write_pictures
from mar.sampling.store import SampleSet


SAMPLES = Path("out/sample/samples")


def export(folder: Path, target: Path) -> str:
    """Write samples and return what there is to know about them.

    Raises:
        ValueError: there are no samples, one of their files is damaged, or the target is a folder
            that holds something.
    """
    samples = SampleSet(folder)
    to_npz = target.suffix == ".npz"
    blank = BlankCounts()
    with tqdm(total=len(samples), desc="export_samples", unit="image") as progress:

        def on_images(images: np.ndarray) -> None:
            nonlocal blank
            blank += count_blank(torch.from_numpy(images.copy()).permute(0, 3, 1, 2))
            progress.update(len(images))

        write = write_npz if to_npz else write_pictures
        write(samples, target, on_images)
    size = f"{samples.height} x {samples.width}"
    what = "labels"
    if samples.prompts is not None:  # the ADM suite has no place for prompts
        what = "labels, which are 0, as they are from prompts" if to_npz else "prompts"
    told = f"{target} holds {len(samples)} images of {size} pixels and their {what}"
    warning = blank.warning()
    return told if warning is None else f"{told}\n{warning}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and write the files."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.export_samples",
        description="Write the generated images for other programs.",
    )
    parser.add_argument("target", type=Path, help="NAME.npz for a file of the ADM suite (arr_0: "
                        "images, arr_1: labels), else a new folder for PNG files")  # fmt: skip
    parser.add_argument("--samples", type=Path, default=SAMPLES, metavar="DIR",
                        help=f"what the stage sample wrote (default: {SAMPLES})")  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        told = export(options.samples, options.target)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"export_samples: {error}\n")
        raise SystemExit(1) from None
    sys.stdout.write(f"{told}\n")


if __name__ == "__main__":
    main()
