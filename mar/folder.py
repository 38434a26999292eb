"""Image folders: one folder per class, split into `train` and `val` or not."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mar.manifest import Split


EXTENSIONS = (  # torchvision's IMG_EXTENSIONS
    ".jpg",
    ".jpeg",
    ".png",
    ".ppm",
    ".bmp",
    ".pgm",
    ".tif",
    ".tiff",
    ".webp",
)


class File(NamedTuple):
    """An image file: path relative to the data folder, and split where the layout decides it."""

    path: str
    label: int
    split: Split | None


@dataclass(frozen=True)
class Listing:
    """What a data folder holds, sorted by class and path."""

    class_names: list[str]
    files: list[File]


def list_folder(root: Path) -> Listing:
    """List the images of a data folder, without opening them.

    With a folder `train`, its class folders are the training split and those of `val`, where there
    is one, the held-out split. Otherwise the class folders lie in the data folder itself. A class
    is numbered by the rank of its folder's name, and holds the images at any depth below it.
    Hidden files and folders are ignored, links followed.

    Raises:
        ValueError: the folder is missing, holds no class folders or a class without images, or
            `train` and `val` hold different classes.
    """
    if not root.is_dir():
        reason = "is not a folder" if root.exists() else "does not exist"
        raise ValueError(f"the image folder {root} {reason}")
    train, val = root / "train", root / "val"
    if not train.is_dir():
        class_names = _class_names(root)
        return Listing(class_names, list(_files(root, "", class_names, None)))
    class_names = _class_names(train)
    if not val.is_dir():
        return Listing(class_names, list(_files(root, "train/", class_names, None)))
    _require_same(train, class_names, val, _class_names(val))
    held_out = _files(root, "val/", class_names, "held_out")
    return Listing(class_names, [*_files(root, "train/", class_names, "train"), *held_out])


def verify(root: Path, known: set[str]) -> None:
    """Compare the names of the images in a data folder with those that `prepare` saw.

    Raises:
        ValueError: images were added or removed.
    """
    found = {file.path for file in list_folder(root).files}
    changes = [
        f"{len(names)} {change} ({min(names)})"
        for change, names in (("added", found - known), ("removed", known - found))
        if names
    ]
    if changes:
        raise ValueError(
            f"the images in {root} are not those that prepare saw: {', '.join(changes)}; "
            "`dvc repro --force --single-item prepare` reads the folder again"
        )


def _class_names(folder: Path) -> list[str]:
    """Return the names of the class folders in a folder, sorted."""
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    if not visible:
        raise ValueError(f"the image folder {folder} is empty")
    names = sorted(entry.name for entry in visible if entry.is_dir())
    if not names:
        example = min(entry.name for entry in visible)
        raise ValueError(
            f"{folder} must hold one folder of images per class, but holds only files ({example})"
        )
    return names


def _files(root: Path, prefix: str, class_names: list[str], split: Split | None) -> Iterator[File]:
    for label, name in enumerate(class_names):
        paths = sorted(_walk(root / prefix / name, f"{prefix}{name}/"))
        if not paths:
            raise ValueError(f"the class folder {root / prefix / name} holds no images")
        for path in paths:
            yield File(path, label, split)


def _walk(folder: Path, prefix: str) -> Iterator[str]:
    """Yield the images below a folder; files are not opened, so a million of them are quick."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(folder / entry.name, f"{prefix}{entry.name}/")
            elif entry.name.lower().endswith(EXTENSIONS):
                _require_text(folder, entry.name)
                yield prefix + entry.name


def _require_text(folder: Path, name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"a file's name in {folder} is not UTF-8: {name!r}") from None


def _require_same(train: Path, train_names: list[str], val: Path, val_names: list[str]) -> None:
    """Refuse splits with different classes."""
    only = [(train, set(train_names) - set(val_names)), (val, set(val_names) - set(train_names))]
    parts = [f"only {folder} has {_some(names)}" for folder, names in only if names]
    if parts:
        raise ValueError(f"{train} and {val} must hold the same classes: {'; '.join(parts)}")


def _some(names: set[str], most: int = 5) -> str:
    text = ", ".join(sorted(names)[:most])
    return text if len(names) <= most else f"{text} and {len(names) - most} more"
