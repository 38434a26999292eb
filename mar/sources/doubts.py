"""What is worth saying of an image folder, and what in it looks like a mistake."""

import math
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from mar.data.formats import EXTENSIONS
from mar.data.manifest import Rows
from mar.sources.checked_files import Checked
from mar.sources.folder_entries import show
from mar.sources.image_folder import Listing, nested_folders


Values = np.ndarray[Any, np.dtype[Any]]

UNEVEN = 20  # times as many images as another class has
DIM_16 = 0.26  # of the range of 16 bits: what cameras and scanners of 14 bits or less fill
DIM_8 = 0.13  # of the range of 8 bits: masks of classes, and values of 5 bits


def remarks(listing: Listing) -> list[str]:
    """Say which files beside the images were passed over, a sentence for each reason."""
    found: list[str] = []
    if listing.left_alone is not None:
        found.append(f"the folder {listing.left_alone} is left alone")
    if junk := listing.skipped.junk:
        found.append(
            f"skipped {len(junk)} hidden files or folders, or those of operating systems, as "
            f"{show(min(junk))}"
        )
    if loops := listing.skipped.loops:
        found.append(
            f"skipped {len(loops)} links that lead to a folder around them, as {show(min(loops))}"
        )
    if ignored := listing.ignored:
        total = len(ignored) + len(listing.files)
        kinds = Counter(os.path.splitext(path)[1].lower() or "no extension" for path in ignored)  # noqa: PTH122
        counts = ", ".join(f"{count} {show(kind)}" for kind, count in kinds.most_common(5))
        found.append(
            f"ignored {len(ignored)} of {total} files ({_percent(len(ignored) / total)}) that are "
            f"no images by their names ({counts}), as {show(ignored[0])}; images end in "
            f"{', '.join(EXTENSIONS)}"
        )
    return found


def warnings(listing: Listing, rows: Rows, checked: Sequence[Checked]) -> list[str]:
    """Say what is allowed but likely a mistake, a sentence each."""
    readable = [file for file in checked if not file.fault]
    brightest = np.array([file.brightest for file in readable])
    wide = np.array([file.sixteen_bits for file in readable], bool)
    found = [*_nested(listing), *sizes(listing.class_names, rows)]
    found += dim(brightest, wide, len(checked))
    if len(listing.ignored) > len(listing.files):
        found.append(
            f"more files are ignored ({len(listing.ignored)}) than read ({len(listing.files)}); "
            "other formats must be converted first"
        )
    return found


def _nested(listing: Listing) -> list[str]:
    nested = nested_folders(listing)
    if not nested:
        return []
    name, folders = next(iter(nested.items()))
    total = sum(folder.total() for folder in nested.values())
    found = [
        f"{total} images lie in folders within class folders, which are no classes of their own "
        f"({len(nested)} of {len(listing.class_names)} classes; {show(name)} has {len(folders)}, "
        f"as {show(name)}/{show(next(iter(folders)))})"
    ]
    alike = all(each.keys() == folders.keys() for each in nested.values())
    if alike and total == len(listing.files) and len(nested) > 1 and len(folders) > 1:
        names = ", ".join(show(each) for each in sorted(folders)[:3])
        found.append(
            f"all {len(nested)} class folders hold the same {len(folders)} folders ({names}) and "
            "no image of their own: if these are the classes, the folders around them must be "
            "called train and val"
        )
    return found


def sizes(class_names: Sequence[str], rows: Rows) -> list[str]:
    """Say which classes are much smaller than others."""
    counts = Counter({label: int(num) for label, num in enumerate(rows.labels().bincount()) if num})
    found: list[str] = []
    if len(class_names) == 1:
        found.append(f"there is one class only, {show(class_names[0])}")
    if single := [class_names[label] for label in sorted(counts) if counts[label] == 1]:
        found.append(
            f"{len(single)} of {len(class_names)} classes have one image only, as {show(single[0])}"
        )
    (most, largest), (fewest, smallest) = counts.most_common()[0], counts.most_common()[-1]
    if largest >= UNEVEN * smallest:
        found.append(
            f"the classes are very uneven: {show(class_names[most])} has {largest} images, "
            f"{show(class_names[fewest])} has {smallest}"
        )
    return found


def dim(brightest: Values, sixteen_bits: Values, total: int) -> list[str]:
    """Say which images will look black, as they use a small part of the range of their values.

    Args:
        brightest: The largest value of each image that can be decoded, as a share of the largest
            possible one; NaN where it is unknown.
        sixteen_bits: Whether the samples of each have 16 bits.
        total: The number of all images.
    """
    found: list[str] = []
    for bits, limit, least in ((16, DIM_16, 0.0), (8, DIM_8, 0.5)):
        kind = brightest[sixteen_bits == (bits == 16)]
        dark = kind[kind < limit]
        if len(dark) and len(dark) >= least * len(kind):
            found.append(
                f"{len(dark)} of {total} images have {bits} bits and use at most "
                f"{_percent(dark.max())} of their range, so they are nearly black; scale their "
                "values"
            )
    return found


def _percent(share: float) -> str:
    percent = 100 * share
    return f"{percent:.0f} %" if percent >= 1 else f"{math.ceil(percent * 10) / 10:.1f} %"
