"""Image folders: one folder per class, split into `train` and `val` or not."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mar.data.manifest import Split


EXTENSIONS = (  # torchvision's IMG_EXTENSIONS, and two more of formats that we read
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
)
EXPECTED = "folders of images, one per class: <class>/..., or train/<class>/... and val/<class>/..."
HELD_OUT = ("val", "validation")  # what the folder of the held-out split may be called


class File(NamedTuple):
    """An image file: path relative to the data folder, and split where the layout decides it."""

    path: str
    label: int
    split: Split | None


@dataclass(frozen=True)
class Listing:
    """What a data folder holds, sorted by class and path.

    Attributes:
        class_names: The name of each label.
        files: The images.
        ignored: Paths of other files, in class folders or beside them.
    """

    class_names: list[str]
    files: list[File]
    ignored: list[str]


def list_folder(root: Path) -> Listing:
    """List the images of a data folder, without opening them.

    With a folder `train` of class folders, they are the training split and those of `val` (or
    `validation`), where there is one, the held-out split; a folder `test` is left alone, and no
    other may lie beside them. Otherwise the class folders lie in the data folder itself. A class
    is numbered by the rank of its folder's name, and holds the images at any depth below it.
    Hidden files and folders are ignored, links followed.

    Raises:
        ValueError: the folder is missing, holds no class folders or a class without images,
            `train` and `val` hold different classes, or other folders lie beside `train`.
    """
    try:
        return _list(Path(os.path.abspath(root)))  # noqa: PTH100 (links stay what they are called)
    except ValueError as error:
        raise ValueError(f"data.path: {error}") from None


def _list(root: Path) -> Listing:
    if not root.is_dir():
        reason = "is not a folder" if root.exists() else "does not exist"
        raise ValueError(f"{root} {reason}, expected {EXPECTED}")
    train, val = _find_splits(root)
    ignored: list[str] = []
    if train is None:
        class_names = _class_names(root, "", ignored)
        files = [*_files(root, "", class_names, None, ignored)]
    elif val is None:
        class_names = _class_names(root, train, ignored)
        files = [*_files(root, train, class_names, None, ignored)]
    else:
        class_names = _class_names(root, train, ignored)
        _require_same(root / train, class_names, root / val, _class_names(root, val, ignored))
        files = [
            *_files(root, train, class_names, "train", ignored),
            *_files(root, val, class_names, "held_out", ignored),
        ]
    return Listing(class_names, files, sorted(ignored))


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


def _find_splits(root: Path) -> tuple[str | None, str | None]:
    """Return the prefixes of the folders that hold the splits, where the layout has them."""
    folders = set(_folders(root))
    others = folders - {"train", "test", *HELD_OUT}
    if "train" not in folders or (others and not _folders(root / "train")):
        return None, None  # a class may be called train
    if others:
        raise ValueError(
            f"{root} holds other folders beside train, whose folders would be the classes: "
            f"{_some(others)}; only val (or validation) and test may lie there"
        )
    held_out = [name for name in HELD_OUT if name in folders]
    if len(held_out) > 1:
        raise ValueError(f"{root} holds {' and '.join(held_out)}, expected one of them")
    return "train/", f"{held_out[0]}/" if held_out else None


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in _visible(folder) if entry.is_dir())


def _class_names(root: Path, prefix: str, ignored: list[str]) -> list[str]:
    """Return the names of the class folders in a folder, sorted; note the files beside them."""
    folder = root / prefix
    visible = _visible(folder)
    if not visible:
        raise ValueError(f"{folder} is empty, expected {EXPECTED}")
    names = sorted(entry.name for entry in visible if entry.is_dir())
    if not names:
        example = min(entry.name for entry in visible)
        raise ValueError(
            f"{folder} must hold one folder of images per class, but holds only files ({example})"
        )
    ignored += [prefix + entry.name for entry in visible if not entry.is_dir()]
    return names


def _files(
    root: Path, prefix: str, class_names: list[str], split: Split | None, ignored: list[str]
) -> Iterator[File]:
    for label, name in enumerate(class_names):
        paths = sorted(_walk(root / prefix / name, f"{prefix}{name}/", ignored))
        if not paths:
            raise ValueError(f"the class folder {root / prefix / name} holds no images")
        for path in paths:
            yield File(path, label, split)


def _walk(folder: Path, prefix: str, ignored: list[str]) -> Iterator[str]:
    """Yield the images below a folder and note other files; none is opened, so a million of them
    are quick.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(folder / entry.name, f"{prefix}{entry.name}/", ignored)
            elif entry.name.lower().endswith(EXTENSIONS):
                _require_text(folder, entry.name)
                yield prefix + entry.name
            else:
                ignored.append(prefix + entry.name)


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
