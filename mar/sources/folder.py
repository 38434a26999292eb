"""The data source `folder`: list the images, check that each can be decoded, hold some out."""

from functools import partial
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from tqdm import tqdm

from mar.config import PathText
from mar.data.held_out import hold_out
from mar.data.manifest import Row, Rows, Split
from mar.data.workers import map_chunks, ranges
from mar.sources import checked_files, doubts
from mar.sources.checked_files import Checked, check_file
from mar.sources.image_folder import File, list_folder
from mar.sources.source import Collection, DataSource, Surroundings
from mar.sources.unreadable import left_out, require_few, require_small


CHUNK = 32  # files that a worker checks at a time
SAVED_EVERY = 20_000  # files checked, after which what is known is kept


class FolderData(DataSource):
    """Images of any size in a folder with one folder per class, as ImageNet is distributed."""

    source: Literal["folder"] = Field(description="a folder of images")
    path: PathText = Field(description="the folder, absolute or from the repository")
    image_size: int = Field(
        gt=0, le=16_384, description="side of the square cut from each image, in pixels"
    )
    held_out_fraction: float = Field(
        gt=0, lt=1, description="share of each class not trained on, unless there is a folder val"
    )
    max_unreadable: int = Field(
        ge=0, description="files that may be left out because they cannot be decoded"
    )
    seed: int = Field(ge=0, description="chooses the images that are held out")

    def collect(self, surroundings: Surroundings) -> Collection:
        """Find and check the images of the folder, and assign them to splits.

        Raises:
            ValueError: the folder has not the layout of `image_folder.list_folder`, an image has
                too many pixels, more files than `data.max_unreadable` cannot be decoded, none of a
                class can, or none is held out.
        """
        root = surroundings.base / Path(self.path).expanduser()
        listing = list_folder(root)
        checked, num_read = check_files(root, [file.path for file in listing.files], surroundings)
        large = {path: file.fault or "" for path, file in checked.items() if file.too_large}
        require_small(root, large, len(checked), surroundings.max_pixels)
        unreadable = {
            file.path: checked[file.path].fault or ""
            for file in listing.files
            if checked[file.path].fault is not None
        }
        require_few(root, unreadable, len(checked), self.max_unreadable)
        files = [file for file in listing.files if file.path not in unreadable]
        _require_every_class(root, listing.class_names, {file.label for file in files})
        splits = _splits(files, self.held_out_fraction, self.seed)
        _require_both(root, files, splits)
        rows = Rows.collect(
            _row(file, checked[file.path], split) for file, split in zip(files, splits, strict=True)
        )
        return Collection(
            listing.class_names,
            rows,
            unreadable,
            remarks=[*doubts.remarks(listing), *left_out(unreadable, len(checked))],
            warnings=doubts.warnings(listing, rows, list(checked.values())),
            num_read=num_read,
            num_known=len(checked) - num_read,
        )


def _row(file: File, checked: Checked, split: Split) -> Row:
    return Row(file.path, None, file.label, checked.size, checked.sha256, split)


def check_files(
    root: Path, paths: list[str], surroundings: Surroundings
) -> tuple[dict[str, Checked], int]:
    """Return what is known of each file, and how many were read: those not known, or changed."""
    place = surroundings.kept and checked_files.place(surroundings.kept, root)
    before = checked_files.load(place) if place else {}
    known = {path: before[path] for path in paths if path in before}
    known = {
        path: file
        for path, file in known.items()
        if not file.too_large and file.is_current(root / path)
    }
    unknown = [path for path in paths if path not in known]
    work = partial(_check_chunk, root, unknown, surroundings.max_pixels)
    chunks = ranges(len(unknown), CHUNK)
    try:
        with tqdm(total=len(unknown), desc="check", unit="image", disable=not unknown) as progress:
            results = map_chunks(work, chunks, surroundings.workers)
            for chunk, part in zip(chunks, results, strict=True):
                known.update(zip((unknown[index] for index in chunk), part, strict=True))
                progress.update(len(part))
                if place and progress.n % SAVED_EVERY < len(part):
                    checked_files.save(place, known)
    finally:
        if place and known != before:
            checked_files.save(place, known)
    return {path: known[path] for path in paths}, len(unknown)


def _check_chunk(root: Path, paths: list[str], max_pixels: int, chunk: list[int]) -> list[Checked]:
    return [check_file(root / paths[index], max_pixels) for index in chunk]


def _require_every_class(root: Path, class_names: list[str], present: set[int]) -> None:
    for label, name in enumerate(class_names):
        if label not in present:
            raise ValueError(f"no image of the class {name} in {root} can be decoded")


def _require_both(root: Path, files: list[File], splits: list[Split]) -> None:
    """Refuse a data set of which nothing is trained on, or nothing held out."""
    for split in ("train", "held_out"):
        if split in splits:
            continue
        if any(file.split for file in files):
            raise ValueError(f"no image of the {split} folder in {root} can be decoded")
        raise ValueError(
            f"no image in {root} can be held out, as each class has one: give a class two or more, "
            "or put the classes into a folder train, and other images of them into val beside it"
        )


def _splits(files: list[File], fraction: float, seed: int) -> list[Split]:
    """Take the splits of the layout, or draw them where it has none."""
    labels = torch.tensor([file.label for file in files])
    held_out = hold_out(labels, fraction, seed).numpy()
    drawn: list[Split] = ["held_out" if held else "train" for held in held_out]
    return [file.split or split for file, split in zip(files, drawn, strict=True)]
