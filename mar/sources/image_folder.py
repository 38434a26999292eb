"""Image folders: one folder per class, split into `train` and `val` or not."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, NoReturn

from mar.data.formats import EXTENSIONS
from mar.data.manifest import Split
from mar.sources.folder_entries import Skipped, entries, require_text, same_text, show
from mar.sources.split_names import Role, like_splits, role


WHOLE_NUMBER = re.compile(r"-?[0-9]+")
EXPECTED = "folders of images, one per class: <class>/..., or train/<class>/... and val/<class>/..."


class File(NamedTuple):
    """An image file: path relative to the data folder, and split where the layout decides it."""

    path: str
    label: int
    split: Split | None


@dataclass
class Listing:
    """What a data folder holds, sorted by class and path.

    Attributes:
        class_names: The name of each label.
        files: The images.
        ignored: Paths of other files, in class folders or beside them.
        skipped: Hidden files, those of operating systems, and links that lead in a circle.
        left_alone: The folder of a test split, if there is one.
        class_depth: How many folders lie around a class folder, 1 with splits.
    """

    class_names: list[str] = field(default_factory=list[str])
    files: list[File] = field(default_factory=list[File])
    ignored: list[str] = field(default_factory=list[str])
    skipped: Skipped = field(default_factory=Skipped)
    left_alone: str | None = None
    class_depth: int = 0


def list_folder(root: Path) -> Listing:
    """List the images of a data folder, without opening them.

    With a folder `train` of class folders, they are the training split and those of `val` (or
    `valid`, `validation`, `dev`), where there is one, the held-out split; a folder `test` is left
    alone, and no other may lie beside them. Capitals do not matter. Otherwise the class folders lie
    in the data folder itself. A class is numbered by the rank of its folder's name (by its value
    where all names are whole numbers), and holds the images at any depth below it. Hidden files and
    folders and those of operating systems are skipped, links followed.

    Raises:
        ValueError: the folder is missing, holds no class folders or a class without images,
            `train` and `val` hold different classes, other folders lie beside `train`, or folders
            look like splits where classes should be.
    """
    try:
        return _list(Path(os.path.abspath(root)))  # noqa: PTH100 (links stay what they are called)
    except ValueError as error:
        raise ValueError(f"data.path: {error}") from None


def nested_folders(listing: Listing) -> dict[str, Counter[str]]:
    """Return the folders within class folders that hold images: class -> folder -> images."""
    found: dict[str, Counter[str]] = {}
    for file in listing.files:
        parts = file.path.split("/")[listing.class_depth + 1 :]
        if len(parts) > 1:
            name = listing.class_names[file.label]
            found.setdefault(name, Counter())[parts[0]] += 1
    return found


def _list(root: Path) -> Listing:
    require_text(root)
    if not root.is_dir():
        reason = "is not a folder" if root.exists() else "does not exist"
        raise ValueError(f"{root} {reason}, expected {EXPECTED}")
    listing = Listing()
    splits = _find_splits(root, listing.skipped)
    train, val = splits.get("train"), splits.get("held_out")
    listing.left_alone = splits.get("test")
    prefix = "" if train is None else f"{train}/"
    listing.class_depth = prefix.count("/")
    folders = _class_folders(root, prefix, listing)
    listing.class_names = in_order(list(folders))
    if val is None:
        listing.files = [*_files(root, prefix, folders, None, listing)]
    else:
        held_out = _class_folders(root, f"{val}/", listing)
        _require_same(root / prefix, set(folders), root / val, set(held_out))
        listing.files = [
            *_files(root, prefix, folders, "train", listing),
            *_files(root, f"{val}/", held_out, "held_out", listing),
        ]
    listing.ignored.sort()
    return listing


def _find_splits(root: Path, skipped: Skipped) -> Mapping[Role, str]:
    """Return the names of the folders that hold the splits, where the layout has a `train`."""
    folders = _folders(root, "", skipped)
    splits: dict[Role, list[str]] = {}
    for name in folders:
        if (kind := role(name)) is not None:
            splits.setdefault(kind, []).append(name)
    others = {name for name in folders if role(name) is None}
    for kind, names in splits.items():
        if len(names) > 1 and (kind == "train" or "train" in splits):
            raise ValueError(f"{root} holds {' and '.join(names)}, expected one of them")
    if "train" in splits and not (others and not _folders(root, f"{splits['train'][0]}/", skipped)):
        if others:
            raise ValueError(
                f"{root} holds other folders beside {splits['train'][0]}, whose folders would be "
                f"the classes: {_some(others)}; only val (or valid, validation, dev) and test may "
                "lie there"
            )
        return {kind: names[0] for kind, names in splits.items()}
    alike = like_splits(folders)
    if alike and (len(alike) > 1 or len(folders) == 1):
        _refuse_splits(root, "class folders", alike)
    return {}  # a class may be called train


def _refuse_splits(folder: Path, what: str, names: list[str]) -> NoReturn:
    raise ValueError(
        f"{folder} holds {what} that look like splits: {_some(set(names))}; data.path must be a "
        "folder whose splits are called train and val (and test, which is left alone), or which "
        "holds class folders"
    )


def _folders(root: Path, prefix: str, skipped: Skipped) -> list[str]:
    return [entry.name for entry in entries(root, prefix, skipped) if entry.is_folder]


def _class_folders(root: Path, prefix: str, listing: Listing) -> dict[str, str]:
    """Return the classes in a folder: name -> folder; note the files beside them."""
    folder = root / prefix
    found = entries(root, prefix, listing.skipped)
    if not found:
        raise ValueError(f"{folder} is empty, expected {EXPECTED}")
    classes: dict[str, str] = {}
    for name, is_folder in found:
        if not is_folder:
            listing.ignored.append(prefix + name)
        elif same_text(name) in classes:
            raise ValueError(
                f"{folder} holds two folders called {same_text(name)}, whose accents are stored in "
                "two ways (NFC and NFD); put them together"
            )
        else:
            classes[same_text(name)] = name
    if not classes:
        raise ValueError(
            f"{folder} must hold one folder of images per class, but holds only files "
            f"({show(found[0].name)})"
        )
    return classes


def in_order(names: list[str]) -> list[str]:
    """Sort names of classes: as numbers where all are whole numbers, else as text."""
    if all(WHOLE_NUMBER.fullmatch(name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _files(
    root: Path, prefix: str, folders: dict[str, str], split: Split | None, listing: Listing
) -> Iterator[File]:
    for label, name in enumerate(listing.class_names):
        folder = f"{prefix}{folders[name]}/"
        alike = like_splits(_folders(root, folder, Skipped()))
        if alike and (len(alike) > 1 or len(folders) == 1):
            _refuse_splits(root / folder, "folders", alike)
        paths = sorted(_walk(root, folder, listing))
        if not paths:
            raise ValueError(f"the class folder {root / folder} holds no images")
        for path in paths:
            yield File(path, label, split)


def _walk(root: Path, prefix: str, listing: Listing) -> Iterator[str]:
    """Yield the images below a folder and note other files; none is opened, so a million of them
    are quick.
    """
    for name, is_folder in entries(root, prefix, listing.skipped):
        if is_folder:
            yield from _walk(root, f"{prefix}{name}/", listing)
        elif name.lower().endswith(EXTENSIONS):
            require_text(root / prefix / name)
            yield prefix + name
        else:
            listing.ignored.append(prefix + name)


def _require_same(train: Path, train_names: set[str], val: Path, val_names: set[str]) -> None:
    """Refuse splits with different classes."""
    only = [(train, train_names - val_names), (val, val_names - train_names)]
    parts = [f"only {folder} has {_some(names)}" for folder, names in only if names]
    if parts:
        others = {_likeness(name): name for name in val_names - train_names}
        alike = {name for name in train_names - val_names if _likeness(name) in others}
        if alike:
            one = min(alike)
            pair = f"{_quoted(one)} and {_quoted(others[_likeness(one)])}"
            parts.append(f"{len(alike)} may be the same in another spelling, as {pair}")
        raise ValueError(f"{train} and {val} must hold the same classes: {'; '.join(parts)}")


def _likeness(name: str) -> str:
    """Return what is left of a name without capitals, spaces, lines, dots and leading zeros."""
    letters = unicodedata.normalize("NFKC", name).casefold()
    joined = re.sub(r"(?<!^)-|[\s_.\u200b-\u200d]+", "", letters)  # a first "-" is a number's sign
    return re.sub(r"(?<![0-9])0+(?=[0-9])", "", joined) or name


def _quoted(name: str) -> str:
    return f"'{show(name)}'"


def _some(names: set[str], most: int = 5) -> str:
    text = ", ".join(_quoted(n) if n != n.strip() else show(n) for n in sorted(names)[:most])
    return text if len(names) <= most else f"{text} and {len(names) - most} more"
