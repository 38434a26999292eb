"""Labelled images as tensors, from a manifest that `prepare` made.

Shapes: B batch, S side of an image in pixels.
"""

import hashlib
from collections.abc import Iterator
from itertools import count, tee
from pathlib import Path

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from mar.data.batches import batch_indices
from mar.data.decoding import read_square
from mar.data.manifest import Manifest, Split
from mar.data.reading import read_file
from mar.data.shards import read_image
from mar.data.spread import spread
from mar.data.workers import map_chunks, ranges


IN_MEMORY_BYTES = 512 * 1024**2
CHUNK = 16  # images that a worker decodes at a time: few, so that all workers share one batch


class ImageSet(Dataset[tuple[Tensor, int]]):
    """One split of the images of a manifest.

    Attributes:
        labels: The label of each image, int64 (B,).
        class_names: The name of each label.
        num_classes: The number of classes, whether this split has images of each or not.
        image_size: The side of the images in pixels.
    """

    def __init__(
        self, manifest: Path, split: Split, image_size: int, *, root: Path = Path()
    ) -> None:
        """Open a manifest of images that lie in the folder `root`, or in the manifest itself.

        In the folder, they are files or parts of shards; the manifest says where.

        Raises:
            ValueError: it lists images of other splits, but none of this one.
        """
        self._manifest = Manifest(manifest, split)
        self._root = root
        if not len(self) and self._manifest.num_all:
            raise ValueError(f"{manifest} lists no images of the split {split}")
        self.labels: Int64[Tensor, " B"] = self._manifest.labels()
        self.class_names = self._manifest.class_names
        self.num_classes = len(self.class_names)
        self.image_size = image_size

    def __len__(self) -> int:
        return len(self._manifest)

    def __getitem__(self, index: int) -> tuple[UInt8[Tensor, "3 S S"], int]:
        """Return an image and its label.

        Raises:
            ValueError: the file is gone, cannot be decoded, or its content is not the one that
                `prepare` saw.
        """
        path = self._manifest.path(index)
        content, name = self._content(index, path)
        if hashlib.sha256(content).digest() != self._manifest.sha256(index):
            raise ValueError(f"{name} has other content than when prepare ran")
        return read_square(content, name, self.image_size), int(self.labels[index])

    def _content(self, index: int, path: str) -> tuple[bytes, str]:
        """Return what an image's file holds, and how to call it."""
        if (content := self._manifest.image(index)) is not None:
            return content, path
        size, place = self._manifest.size(index), self._manifest.place(index)
        if place is not None:
            content = read_image(self._root, place, size)
        else:
            content = _read(self._root / path, size)
        return content, str(self._root / path)

    @property
    def names(self) -> list[str]:
        """The path of each image, relative to the data folder: of its file, or shard and name."""
        return self._manifest.paths()

    def is_present(self, index: int) -> bool:
        """Tell whether an image can be read here: a manifest can travel without its images."""
        if self._manifest.image(index) is not None:
            return True
        place = self._manifest.place(index)
        path = self._manifest.path(index) if place is None else place.shard
        return (self._root / path).is_file()

    def stack(self, indices: list[int]) -> UInt8[Tensor, "B 3 S S"]:
        """Return some of the images as one tensor."""
        images = _empty(self, len(indices))
        for place, index in enumerate(indices):
            images[place] = self[index][0]
        return images

    def spread(self, num: int) -> UInt8[Tensor, "B 3 S S"]:
        """Return `num` images, evenly spread over the set, or all of them if fewer."""
        return self.stack([int(index) for index in spread(len(self), num)])


def load_images(images: ImageSet, workers: int) -> UInt8[Tensor, "B 3 S S"]:
    """Decode a whole set that fits in memory."""
    decoded = _empty(images, len(images))
    chunks = ranges(len(images), CHUNK)
    with tqdm(total=len(images), desc="decode", unit="image") as progress:
        for chunk, part in zip(chunks, map_chunks(images.stack, chunks, workers), strict=True):
            decoded[chunk] = part
            progress.update(len(chunk))
    return decoded


def image_batches(
    images: ImageSet,
    batch_size: int,
    *,
    seed: int,
    first_step: int,
    workers: int,
    part: slice = slice(None),
) -> Iterator[tuple[UInt8[Tensor, "B 3 S S"], Int64[Tensor, " B"]]]:
    """Yield the images and labels of `batch_indices`, or of a part of them, without end.

    A set of at most 512 MiB is decoded once and kept in memory. Of a larger one each batch is
    decoded ahead of its step, by worker processes that end when the iterator is closed or
    forgotten.
    """
    steps = (
        batch_indices(len(images), batch_size, seed=seed, step=step)[part]
        for step in count(first_step)
    )
    if len(images) * 3 * images.image_size**2 <= IN_MEMORY_BYTES:
        decoded = load_images(images, workers)
        for chosen in steps:
            yield decoded[chosen], images.labels[chosen]
    else:
        yield from _decoded_ahead(images, steps, workers)


def _decoded_ahead(
    images: ImageSet, steps: Iterator[Int64[Tensor, " B"]], workers: int
) -> Iterator[tuple[UInt8[Tensor, "B 3 S S"], Int64[Tensor, " B"]]]:
    workers = min(workers, -(-len(images) // CHUNK))
    steps, steps_of_workers = tee(steps)
    parts = map_chunks(images.stack, _cut(steps_of_workers), workers)
    for chosen in steps:
        batch = _empty(images, len(chosen))
        for chunk in torch.split(batch, CHUNK):
            chunk.copy_(next(parts))  # a copy, so that the worker's shared memory is free again
        yield batch, images.labels[chosen]


def _cut(steps: Iterator[Int64[Tensor, " B"]]) -> Iterator[list[int]]:
    for chosen in steps:
        for chunk in torch.split(chosen, CHUNK):
            yield [int(index) for index in chunk]


def _empty(images: ImageSet, num: int) -> UInt8[Tensor, "B 3 S S"]:
    return torch.empty(num, 3, images.image_size, images.image_size, dtype=torch.uint8)


def _read(file: Path, expected_bytes: int) -> bytes:
    try:
        content, _ = read_file(file)
    except ValueError as error:
        if not file.exists():
            raise ValueError(
                f"{file} is gone since prepare ran, or the data folder (data.path) lies elsewhere"
            ) from None
        raise ValueError(f"{file}: {error}") from None
    if len(content) != expected_bytes:
        raise ValueError(f"{file} has {len(content)} bytes, {expected_bytes} when prepare ran")
    return content
