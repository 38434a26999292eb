"""Statistics of real images that others measured and published, read from their files.

Two layouts: an `.npz` with `mu`, `sigma` and, as the ADM suite has them, `mu_s`, `sigma_s` (of
spatial features) and `arr_0` (some of the images); and a `.pt` file of torch-fidelity's cache, with
`mu` and `sigma`. Neither is read in a way that could run code.

Shapes: B images, S side of an image in pixels, F features.
"""
# torch.from_numpy and numpy's archives have no types:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import pickle
import zipfile
import zlib
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from numpy._core.multiarray import _reconstruct  # pyright: ignore[reportPrivateUsage]
from torch import Tensor

from mar.data.spread import spread
from mar.evaluation.extractors import ReferenceSection, StatisticsFile
from mar.evaluation.statistics import Statistics


KEY = "reference.statistics"
IMAGES = "arr_0"
DAMAGE = (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error)
# All that a pickle of arrays of numbers names, and torch's safe reader does not know.
ARRAYS = [_reconstruct, np.ndarray, np.dtype, np.dtypes.Float32DType, np.dtypes.Float64DType]


@dataclass(frozen=True)
class PublishedStatistics:
    """Statistics that others measured, and some of their images.

    Attributes:
        statistics: Of the features of their images.
        spatial: Of the spatial features; None if the file holds none.
        images: Some of the images, uint8 (N, S, S, 3); N is 0 if the file holds none.
    """

    statistics: Statistics
    spatial: Statistics | None
    images: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_size(self) -> int:
        """The side of an image in pixels."""
        return self.images.shape[1]

    def stack(self, indices: list[int]) -> UInt8[Tensor, "B 3 S S"]:
        """Return some of the images as one tensor."""
        return torch.from_numpy(self.images[indices]).permute(0, 3, 1, 2)

    def keep(self, wanted: int) -> "PublishedStatistics":
        """Return the same statistics with only `wanted` of the images, evenly spread."""
        if wanted >= len(self):
            return self  # ADM's are 2 GB: no copy of them
        kept = self.images[spread(len(self), wanted).numpy()]
        return PublishedStatistics(self.statistics, self.spatial, kept)


def find_published(config: ReferenceSection, base: Path) -> Path | None:
    """Return the path of the published statistics that a section names, None if it names none."""
    file = config.statistics_file
    return None if file is None else base / Path(file.path).expanduser()


def has_images(statistics: Path) -> bool:
    """Return whether a file of published statistics exists and holds images too, as KID needs."""
    try:
        with statistics.open("rb") as stream:
            return IMAGES in np.load(stream, allow_pickle=False).files
    except DAMAGE:
        return False


def read_published(path: Path, file: StatisticsFile, *, image_size: int) -> PublishedStatistics:
    """Read statistics, and images if there are any, and check that they can be compared with.

    Args:
        path: The file.
        file: How many features it must have.
        image_size: The side of the images to be scored, in pixels.

    Raises:
        ValueError: the file is damaged or would run code, or a key is missing, of another shape, or
            holds numbers that are no statistics; the message names the file and the key.
    """
    with _open(path) as (keys, read):
        statistics = _statistics(path, read, ("mu", "sigma"), file.width)
        spatial = None
        if file.spatial_width is not None and {"mu_s", "sigma_s"} & keys:
            spatial = _statistics(path, read, ("mu_s", "sigma_s"), file.spatial_width)
        images = np.zeros((0, image_size, image_size, 3), np.uint8)
        if IMAGES in keys:
            images = read(IMAGES)
            _check_shape(path, IMAGES, images.shape[1:], (image_size, image_size, 3))
            if images.dtype != np.uint8:
                raise ValueError(f"{KEY}: {path} has {IMAGES} of {images.dtype}, expected uint8")
            if len(images) == 1:
                raise ValueError(
                    f"{KEY}: {path} has {IMAGES} of 1 image, expected none, or 2 or more"
                )
    return PublishedStatistics(statistics, spatial, images)


@contextmanager
def _open(path: Path) -> Generator[tuple[set[str], Callable[[str], np.ndarray]]]:
    """Yield the names of a file's arrays, and what reads one."""
    if path.suffix.lower() == ".pt":
        arrays = _load_pickle(path)
        yield set(arrays), lambda name: _array(path, arrays, name)
        return
    with path.open("rb") as stream:  # which a damaged archive would leave open
        try:
            archive = np.load(stream, allow_pickle=False)
            names = set(archive.files)
        except DAMAGE as error:
            raise ValueError(f"{KEY}: {path} is no .npz with mu and sigma: {error}") from None
        yield names, lambda name: _array(path, archive, name)


def _load_pickle(path: Path) -> dict[str, Any]:
    """Read torch-fidelity's file: a pickle, of which nothing but arrays is accepted."""
    try:
        with torch.serialization.safe_globals(ARRAYS):
            found = torch.load(path, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, *DAMAGE) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{KEY}: {path} is no file of statistics by torch-fidelity: {reason}"
        ) from None
    if not isinstance(found, dict):
        raise ValueError(f"{KEY}: {path} holds {type(found).__name__}, expected mu and sigma")
    return {str(name): value for name, value in found.items()}


def _array(path: Path, arrays: Mapping[str, Any], name: str) -> np.ndarray:
    try:
        found = arrays[name]
    except KeyError:
        known = ", ".join(arrays) or "nothing"
        raise ValueError(f"{KEY}: {path} lacks {name}; it has {known}") from None
    except DAMAGE as error:
        raise ValueError(f"{KEY}: {path}: {name} cannot be read: {error}") from None
    found = found.numpy() if isinstance(found, Tensor) else found
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiu":
        kind = found.dtype if isinstance(found, np.ndarray) else type(found).__name__
        raise ValueError(f"{KEY}: {path}: {name} holds {kind}, expected an array of numbers")
    return found


def _statistics(
    path: Path, read: Callable[[str], np.ndarray], names: tuple[str, str], width: int
) -> Statistics:
    mean, covariance = (torch.from_numpy(read(name)).double() for name in names)
    for name, found, shape in zip(
        names, (mean, covariance), ((width,), (width, width)), strict=True
    ):
        _check_shape(path, name, tuple(found.shape), shape)
        if not found.isfinite().all():
            raise ValueError(f"{KEY}: {path}: {name} has nan or infinity")
    scale = float(covariance.diagonal().abs().max())
    if float((covariance - covariance.T).abs().max()) > 1e-4 * scale:
        raise ValueError(f"{KEY}: {path}: {names[1]} is not symmetric, so it is no covariance")
    if float(covariance.diagonal().min()) < 0:
        raise ValueError(f"{KEY}: {path}: {names[1]} has a negative variance")
    return Statistics(mean, covariance, None)


def _check_shape(path: Path, name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise ValueError(f"{KEY}: {path} has {name} {found}, expected {expected}")
