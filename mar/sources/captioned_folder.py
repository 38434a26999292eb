"""The data source `captioned_folder`: images anywhere in a folder, with captions and no classes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from mar.config import PathText
from mar.data.formats import EXTENSIONS
from mar.data.held_out import hold_out
from mar.data.manifest import Row, Rows, Split
from mar.sources.caption_files import CaptionsConfig, Found
from mar.sources.caption_report import caption_remarks, caption_warnings
from mar.sources.captions import CLASS
from mar.sources.folder import check_files
from mar.sources.folder_entries import Skipped, entries, require_text
from mar.sources.source import Collection, DataSource, Surroundings
from mar.sources.split_names import role
from mar.sources.unreadable import Wording, left_out, require_few, require_small


USABLE = Wording("images", "used")


class CaptionedFolderData(DataSource):
    """Images of any size with captions, in whatever folders."""

    source: Literal["captioned_folder"] = Field(description="a folder of images with captions")
    path: PathText = Field(description="the folder, absolute or from the repository")
    image_size: int = Field(
        gt=0, le=16_384, description="side of the square cut from each image, in pixels"
    )
    captions: CaptionsConfig = Field(description="where the captions stand")
    held_out_fraction: float = Field(
        gt=0, lt=1, description="share of the images not trained on, unless there is a folder val"
    )
    max_unreadable: int = Field(
        ge=0, description="images that may be left out: they cannot be decoded or have no caption"
    )
    seed: int = Field(ge=0, description="chooses the images that are held out")

    @property
    def has_captions(self) -> bool:
        """All images have captions."""
        return True

    def collect(self, surroundings: Surroundings) -> Collection:
        """Find the images and their captions, check both, and assign them to splits.

        Raises:
            ValueError: the folder holds no images or no captions, a file of captions is not of its
                layout, an image has too many pixels, or more images than `data.max_unreadable`
                cannot be used.
        """
        root = surroundings.base / Path(self.path).expanduser()
        images, others = _files(root)
        found = self.captions.read(root, images, others)
        checked, num_read = check_files(root, images, surroundings)
        large = {path: file.fault or "" for path, file in checked.items() if file.too_large}
        require_small(root, large, len(images), surroundings.max_pixels)
        unreadable = {
            path: reason
            for path in images
            if (reason := checked[path].fault or _without(found.captions[path]))
        }
        try:
            require_few(root, unreadable, len(images), self.max_unreadable, USABLE)
        except ValueError as error:  # captions without an image may be theirs
            raise ValueError("\n".join([str(error), *_orphans(found)])) from None
        usable = [path for path in images if path not in unreadable]
        rows = Rows.collect(
            Row(
                path,
                None,
                0,
                checked[path].size,
                checked[path].sha256,
                split,
                captions=tuple(text for text in found.captions[path] if text),
            )
            for path, split in zip(
                usable, _splits(root, usable, self.held_out_fraction, self.seed), strict=True
            )
        )
        empty = [path for path, texts in found.captions.items() if "" in texts]
        return Collection(
            [CLASS],
            rows,
            unreadable,
            remarks=[*left_out(unreadable, len(images), USABLE), *caption_remarks(rows)],
            warnings=[*_orphans(found), *caption_warnings(empty, rows)],
            num_read=num_read,
            num_known=len(images) - num_read,
        )


def _orphans(found: Found) -> list[str]:
    """Say which captions are likely misplaced."""
    if not found.orphans:
        return []
    return [
        f"{len(found.orphans)} captions belong to no image of the folder, as {found.orphans[0]}"
    ]


def _without(captions: list[str]) -> str | None:
    return None if any(captions) else "it has no caption"


def _files(root: Path) -> tuple[list[str], list[str]]:
    """Return the paths of the images in a folder, and of the other files."""
    if not root.is_dir():
        reason = "is not a folder" if root.exists() else "does not exist"
        raise ValueError(f"data.path: {root} {reason}")
    images: list[str] = []
    others: list[str] = []
    for path in _walk(root, ""):
        (images if path.lower().endswith(EXTENSIONS) else others).append(path)
    if not images:
        raise ValueError(f"data.path: {root} holds no images")
    return images, others


def _walk(root: Path, prefix: str) -> Iterator[str]:
    for name, is_folder in entries(root, prefix, Skipped()):
        if is_folder:
            yield from _walk(root, f"{prefix}{name}/")
        else:
            require_text(root / prefix / name)
            yield prefix + name


def _splits(root: Path, paths: list[str], fraction: float, seed: int) -> list[Split]:
    """Take the splits of folders train and val, or draw them."""
    roles = {path: role(path.split("/")[0]) if "/" in path else None for path in paths}
    if {"train", "held_out"} <= set(roles.values()):
        if others := [path for path in paths if roles[path] not in ("train", "held_out")]:
            raise ValueError(f"data.path: {root} holds images beside train and val, as {others[0]}")
        return ["held_out" if roles[path] == "held_out" else "train" for path in paths]
    if len(paths) < 2:
        raise ValueError(f"data.path: {root} needs two images or more, to hold one out")
    held_out = hold_out(torch.zeros(len(paths), dtype=torch.int64), fraction, seed).numpy()
    return ["held_out" if held else "train" for held in held_out]
