"""What all data sources have in common."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from mar.config import Config
from mar.data.manifest import Rows, Split


@dataclass(frozen=True)
class Surroundings:
    """What is needed to collect images and does not change which they are.

    Attributes:
        base: Where a relative path begins.
        workers: Processes that check files.
        max_pixels: Larger images end the collection.
        kept: A folder in which to keep what is known of files, or None.
    """

    base: Path
    workers: int
    max_pixels: int
    kept: Path | None = None


@dataclass(frozen=True)
class Collection:
    """All images of a data source.

    Attributes:
        class_names: The name of each label.
        rows: The images.
        unreadable: Path of each file that cannot be decoded -> why.
        remarks: What is worth knowing of how the images were found, a sentence each.
        warnings: What is allowed but likely a mistake, a sentence each.
        num_read: How many files were read.
        num_known: How many were not, as they are unchanged since they were.
    """

    class_names: list[str]
    rows: Rows
    unreadable: dict[str, str] = field(default_factory=dict[str, str])
    remarks: list[str] = field(default_factory=list[str])
    warnings: list[str] = field(default_factory=list[str])
    num_read: int = 0
    num_known: int = 0

    def count(self, split: Split) -> int:
        """Return the number of images of a split."""
        return self.rows.count(split)


class DataSource(Config):
    """Section `data` of `params.yaml`.

    Attributes:
        image_size: The side of the images in pixels.
        has_images: Whether there are images, and not their classes alone.
    """

    has_images: ClassVar[bool] = True

    image_size: int = Field(gt=0, description="side of the images in pixels")

    @property
    def has_captions(self) -> bool:
        """Whether images have captions."""
        return False

    def collect(self, surroundings: Surroundings) -> Collection:
        """Find and check the images, and assign them to splits.

        Raises:
            ValueError: the data are not as they should be.
        """
        raise NotImplementedError
