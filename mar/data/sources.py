"""Where images come from: find them, check that each can be decoded, and hold some out.

Shapes: N images of a data set.
"""

import io
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int64, UInt8
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from mar.data.config import DataConfig, DigitsData, FolderData, NoData
from mar.data.image_folder import File, list_folder
from mar.data.images import find_fault
from mar.data.manifest import Info, Row, Split
from mar.data.workers import map_chunks, ranges
from mar.seeds import make_rng


CHUNK = 32  # files that a worker checks at a time


class Checked(NamedTuple):
    """The size of a file in bytes and why it cannot be decoded, if it cannot."""

    size: int
    fault: str | None


@dataclass(frozen=True)
class Collection:
    """All images of a data source.

    Attributes:
        info: What holds for all of them.
        rows: The images.
        unreadable: Path of each file that cannot be decoded -> why.
        ignored: Paths of files that are no images by their names.
    """

    info: Info
    rows: list[Row]
    unreadable: dict[str, str]
    ignored: list[str] = field(default_factory=list[str])

    def count(self, split: Split) -> int:
        """Return the number of images of a split."""
        return sum(row.split == split for row in self.rows)


def collect(config: DataConfig, workers: int, base: Path = Path()) -> Collection:
    """Find and check the images of a data source, and assign them to splits.

    A relative path of a folder begins at `base`.

    Raises:
        ValueError: the folder has not the layout of `image_folder.list_folder`, more files than
            `data.max_unreadable` cannot be decoded, none of a class can, or none is held out.
    """
    match config:
        case DigitsData():
            return _collect_digits(config)
        case FolderData():
            return _collect_folder(config, workers, base)
        case NoData():
            return Collection(Info("none", "", _class_names(config), []), [], {})


def hold_out(labels: Int64[Tensor, " N"], fraction: float, seed: int) -> Bool[Tensor, " N"]:
    """Choose a share of each class at random (True = held out).

    A class of two images or more keeps at least one on either side; a class of one is trained on.
    """
    held_out = torch.zeros_like(labels, dtype=torch.bool)
    counts = [int(num) for num in labels.bincount()]
    by_class = torch.split(labels.argsort(stable=True), counts)
    for label, members in enumerate(by_class):
        num = min(max(round(fraction * len(members)), 1), len(members) - 1)
        order = torch.randperm(len(members), generator=make_rng("held out", seed, label))
        held_out[members[order[: max(num, 0)]]] = True
    return held_out


def describe(unreadable: dict[str, str], most: int = 10) -> str:
    """Name the first unreadable files, one a line."""
    lines = [f"  {path}: {reason}" for path, reason in list(unreadable.items())[:most]]
    if len(unreadable) > most:
        lines.append(f"  and {len(unreadable) - most} more")
    return "\n".join(lines)


def _collect_digits(config: DigitsData) -> Collection:
    images, labels = _digits()
    held_out = hold_out(labels, config.held_out_fraction, config.seed)
    rows: list[Row] = []
    for index, image in enumerate(images):
        file = io.BytesIO()
        Image.fromarray(image.numpy()).save(file, "PNG")
        content = file.getvalue()
        split: Split = "held_out" if held_out[index] else "train"
        path = f"digits/{index:04d}"
        rows.append(Row(path, content, int(labels[index]), len(content), split))
    return Collection(Info("digits", "", [str(digit) for digit in range(10)], []), rows, {})


def _digits() -> tuple[UInt8[Tensor, "N 8 8"], Int64[Tensor, " N"]]:
    # Here, as it takes seconds to import, and a folder of images does not need it.
    from sklearn.datasets import load_digits  # pyright: ignore[reportMissingTypeStubs]

    values, labels = load_digits(return_X_y=True)  # pyright: ignore[reportUnknownVariableType]
    images = torch.tensor(values).reshape(-1, 8, 8) * 255 / 16  # scikit-learn: 0 to 16
    return images.round().to(torch.uint8), torch.tensor(labels, dtype=torch.int64)


def _class_names(config: NoData) -> list[str]:
    if config.classes != "imagenet":
        return config.classes
    # Here, as it takes seconds to import. Its classes are sorted by their WordNet ids.
    from torchvision.models import ResNet50_Weights  # pyright: ignore[reportMissingTypeStubs]

    return ResNet50_Weights.IMAGENET1K_V1.meta["categories"]


def _collect_folder(config: FolderData, workers: int, base: Path) -> Collection:
    root = base / Path(config.path).expanduser()
    listing = list_folder(root)
    checked = _check_files(root, [file.path for file in listing.files], workers)
    pairs = list(zip(listing.files, checked, strict=True))
    unreadable = {file.path: fault for file, (_, fault) in pairs if fault is not None}
    if len(unreadable) > config.max_unreadable:
        raise ValueError(
            f"{len(unreadable)} of {len(checked)} files in {root} cannot be decoded, "
            f"data.max_unreadable is {config.max_unreadable}:\n{describe(unreadable)}"
        )
    readable = [(file, size) for file, (size, fault) in pairs if fault is None]
    _require_every_class(root, listing.class_names, {file.label for file, _ in readable})
    files = [file for file, _ in readable]
    splits = _splits(files, config)
    _require_both(root, files, splits)
    rows = [
        Row(file.path, None, file.label, size, split)
        for (file, size), split in zip(readable, splits, strict=True)
    ]
    info = Info("folder", config.path, listing.class_names, list(unreadable))
    return Collection(info, rows, unreadable, listing.ignored)


def _check_files(root: Path, paths: list[str], workers: int) -> list[Checked]:
    checked: list[Checked] = []
    chunks = ranges(len(paths), CHUNK)
    with tqdm(total=len(paths), desc="check", unit="image") as progress:
        for results in map_chunks(partial(_check_chunk, root, paths), chunks, workers):
            checked += results
            progress.update(len(results))
    return checked


def _check_chunk(root: Path, paths: list[str], chunk: list[int]) -> list[Checked]:
    return [_check_file(root / paths[index]) for index in chunk]


def _check_file(file: Path) -> Checked:
    try:
        content = file.read_bytes()
    except OSError as error:
        return Checked(0, error.strerror or "cannot be read")
    return Checked(len(content), find_fault(content))


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


def _splits(files: list[File], config: FolderData) -> list[Split]:
    """Take the splits of the layout, or draw them where it has none."""
    labels = torch.tensor([file.label for file in files])
    held_out = hold_out(labels, config.held_out_fraction, config.seed).numpy()
    drawn: list[Split] = ["held_out" if held else "train" for held in held_out]
    return [file.split or split for file, split in zip(files, drawn, strict=True)]
