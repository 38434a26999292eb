"""Write the generated images for other programs: `python -m stages.export_samples TARGET`.

A TARGET that ends in `.npz` is a file of the ADM suite, any other a folder of PNG files with their
classes or prompts; with `--to geneval`, in the folders that GenEval's evaluation reads. It is no
stage of `dvc.yaml`: nothing here depends on what others do with the files.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from tqdm import tqdm

from mar.evaluation.scene_prompts import read_prompt
from mar.sampling.blank import BlankCounts, count_blank
from mar.sampling.export import require_new, write_geneval, write_npz, write_pictures
from mar.sampling.store import SampleSet


SAMPLES = Path("out/sample/samples")

Layout = Literal["npz", "png", "geneval"]
FILES = (".npz", ".npy", ".zip", ".tar", ".tgz", ".gz", ".png", ".jpg", ".jsonl", ".parquet")


def export(folder: Path, target: Path, layout: Layout | None = None) -> str:
    """Write samples and return what there is to know about them.

    Args:
        folder: What the stage `sample` wrote.
        target: The file or folder to write.
        layout: Its layout; None is `npz` if the target is called so, else `png`.

    Raises:
        ValueError: there are no samples, one of their files is damaged, the target is none for the
            layout, or the layout says what images must show and nobody knows.
    """
    if layout is None:
        layout = "npz" if target.suffix.lower() == ".npz" else "png"
    check_target(target, layout)
    samples = SampleSet(folder)
    blank = BlankCounts()
    with tqdm(total=len(samples), desc="export_samples", unit="image") as progress:

        def on_images(images: np.ndarray) -> None:
            nonlocal blank
            blank += count_blank(torch.from_numpy(images.copy()).permute(0, 3, 1, 2))
            progress.update(len(images))

        if layout == "geneval":
            write_geneval(samples, target, geneval_lines(samples), on_images)
        else:
            write = write_npz if layout == "npz" else write_pictures
            write(samples, target, on_images)
    size = f"{samples.height} x {samples.width}"
    labels = _labels(samples, layout)
    told = f"{target} holds {len(samples)} images of {size} pixels and their {labels}"
    warning = blank.warning()
    return told if warning is None else f"{told}\n{warning}"


def check_target(target: Path, layout: Layout) -> None:
    """Refuse a target before anything is read for it.

    Raises:
        ValueError: it is called as a file where it would be a folder, or is there already: a folder
            in the place of the file, or one that holds something.
    """
    if layout == "npz":
        if target.is_dir():
            raise ValueError(f"{target} is a folder, expected the name of a file for --to npz")
        return
    if target.suffix.lower() in FILES:
        raise ValueError(f"{target} is the name of a file, expected that of a folder for "
                         f"--to {layout} (NAME.npz without --to is a file)")  # fmt: skip
    require_new(target)


def geneval_lines(samples: SampleSet) -> list[str]:
    """Return what each sample must show: as GenEval's file said, or as the grammar of scenes reads.

    Raises:
        ValueError: prompts are of neither.
    """
    if samples.geneval is not None:
        return samples.geneval
    if samples.prompts is None:
        raise ValueError("--to geneval: the images are of classes, expected images of prompts")
    lines = {text: read_prompt(text) for text in dict.fromkeys(samples.prompts)}
    unknown = [text for text, prompt in lines.items() if prompt is None]
    if unknown:
        raise ValueError(
            f"--to geneval: {len(unknown)} of {len(lines)} prompts, as {unknown[0]!r}, are neither "
            "of GenEval's file (sample.prompts: NAME.jsonl) nor captions of scenes"
        )
    written = {text: json.dumps(prompt.metadata()) for text, prompt in lines.items() if prompt}
    return [written[text] for text in samples.prompts]


def _labels(samples: SampleSet, layout: Layout) -> str:
    """Return what is written beside the images."""
    if layout == "geneval":
        return "prompts, as GenEval's evaluation reads them"
    if samples.prompts is None:
        return "labels"
    if layout == "npz":  # which has no place for prompts
        return "labels, which are 0, as they are from prompts"
    return "prompts"


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and write the files."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.export_samples",
        description="Write the generated images for other programs.",
    )
    add = parser.add_argument
    add("target", type=Path, help="NAME.npz for a file of the ADM suite (arr_0: images, arr_1: "
        "labels), else a new folder for PNG files")  # fmt: skip
    add("--to", choices=get_args(Layout), help="geneval: a folder for each prompt with its "
        "metadata.jsonl and samples; the others are chosen by the name of the target")  # fmt: skip
    add("--samples", type=Path, default=SAMPLES, metavar="DIR",
        help=f"what the stage sample wrote (default: {SAMPLES})")  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        told = export(options.samples, options.target, options.to)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"export_samples: {error}\n")
        raise SystemExit(1) from None
    sys.stdout.write(f"{told}\n")


if __name__ == "__main__":
    main()
