"""The store of generated images: a folder of Arrow IPC files, read through a memory map.

Each shard holds the columns `index`, `label` and `image` (bytes in the layout H, W, RGB), of images
from prompts also `prompt`, of those of GenEval's files also `geneval` (the line, which says what
the image must show), of drawn captions also `source` (the image that has it), and, as metadata of
its schema, `height`, `width`, `num_classes`, `seed` and its seal (`mar.files.seal`). An image's
noise comes from (seed, index). Any Arrow reader opens it.

Shapes: B images, H height, W width.
"""
# pyarrow has no types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int, UInt8
from pyarrow import ipc
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from mar.files import seal
from mar.files.arrow import open_arrow


METADATA = ("height", "width", "num_classes", "seed")
TEXTS = ("prompt", "geneval", "source")


class Kind(NamedTuple):
    """What all shards of a folder have in common.

    Attributes:
        height: Of every image, in pixels.
        width: Of every image, in pixels.
        num_classes: The number of classes that the generator knows.
        seed: Of the noise of every image, together with its index.
        texts: The columns of texts that each has.
    """

    height: int
    width: int
    num_classes: int
    seed: int
    texts: tuple[str, ...]

    @classmethod
    def of(cls, schema: pa.Schema) -> "Kind":
        """Read it from a shard's schema and its metadata."""
        metadata = schema.metadata or {}
        numbers = (int(metadata[key.encode()]) for key in METADATA)
        return cls(*numbers, texts=tuple(name for name in TEXTS if name in schema.names))

    def __str__(self) -> str:
        source = f"{self.num_classes} classes"
        if self.texts:
            source = "prompts of GenEval" if "geneval" in self.texts else "prompts"
        return f"{self.height}x{self.width} images of {source} and seed {self.seed}"


def shard_path(folder: Path, number: int) -> Path:
    """Return the path of a shard; names sort in the order of the images."""
    return folder / f"{number:05d}.arrow"


def write_shard(
    path: Path,
    images: UInt8[Tensor, "B 3 H W"],
    *,
    labels: Int[Tensor, " B"],
    first_index: int,
    num_classes: int,
    seed: int,
    prompts: Sequence[str] | None = None,
    geneval: Sequence[str] | None = None,
    sources: Sequence[str] | None = None,
) -> None:
    """Write images `first_index`, `first_index + 1`, ... and their labels as one file.

    The same images give the same bytes.
    """
    count, _, height, width = images.shape
    pixels = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()  # (B, H, W, 3)
    texts = {"prompt": prompts, "geneval": geneval, "source": sources}
    texts = {name: column for name, column in texts.items() if column is not None}
    schema = _schema(Kind(height, width, num_classes, seed, tuple(texts)))
    values = pa.py_buffer(pixels)
    columns = [
        pa.array(np.arange(first_index, first_index + count), pa.int64()),
        pa.array(labels.cpu().numpy().astype(np.int32)),
        pa.FixedSizeBinaryArray.from_buffers(schema.field("image").type, count, [None, values]),
    ]
    columns += [pa.array(column, pa.string()) for column in texts.values()]
    with seal.sealing(path) as unfinished, ipc.new_file(str(unfinished), schema) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))


class SampleSet(Dataset[Tensor]):
    """Generated images in the order of their index, as torch-fidelity reads them: uint8 (3, H, W).

    Attributes:
        labels: The class that each image was generated for.
        num_classes: The number of classes that the generator knows.
        prompts: The prompt that each image was generated from, if they were.
        geneval: The lines of GenEval's files that these are from, if they are.
        sources: The real images whose captions these are, if they were drawn.
        height: Of every image, in pixels.
        width: Of every image, in pixels.
        seed: Of the noise of every image, together with its index.

    Raises:
        ValueError: the folder has no shard, a shard is damaged or not of this layout, shards differ
            in size, seed or number of classes, or an index is missing or doubled.
    """

    def __init__(self, folder: Path, *, checked: bool = False) -> None:
        """Open the shards of a folder.

        Args:
            folder: Where they are.
            checked: Whether they were compared with their seals before, by the process that
                started this one.
        """
        self.folder = folder
        paths = sorted(folder.glob("*.arrow"))
        if not paths:
            raise ValueError(f"{folder} holds no samples (*.arrow)")
        if not checked:
            for path in tqdm(paths, desc=f"check {folder}", unit="file", delay=3, leave=False):
                seal.check(path)
        self._images: list[np.ndarray] = []
        self._first: list[int] = []
        labels: list[np.ndarray] = []
        texts: dict[str, list[str]] = {name: [] for name in TEXTS}
        schema, count = _open(paths[0]).schema, 0
        for path in paths:
            table = _open(path)
            if (found := Kind.of(table.schema)) != (expected := Kind.of(schema)):
                raise ValueError(f"{path} holds {found}, but {paths[0].name} {expected}")
            index = table["index"].to_numpy()
            _check_index(path, index, count)
            labels.append(table["label"].to_numpy())
            for name in found.texts:
                texts[name] += table[name].to_pylist()
            for images in _views(table):
                self._images.append(images)
                self._first.append(count)
                count += len(images)
        self.height, self.width, self.num_classes, self.seed, _ = Kind.of(schema)
        self.prompts: list[str] | None = texts["prompt"] or None
        self.geneval: list[str] | None = texts["geneval"] or None
        self.sources: list[str] | None = texts["source"] or None
        self.labels: Int[Tensor, " B"] = torch.from_numpy(np.concatenate(labels).astype(np.int64))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_size(self) -> int:
        """The side of square images in pixels."""
        assert self.height == self.width
        return self.height

    def __getitem__(self, index: int) -> UInt8[Tensor, "3 H W"]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        batch = int(np.searchsorted(self._first, index, side="right")) - 1
        pixels = self._images[batch][index - self._first[batch]]  # (H, W, 3)
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())

    def stack(self, indices: list[int]) -> UInt8[Tensor, "B 3 H W"]:
        """Return some of the images as one tensor."""
        return torch.stack([self[index] for index in indices])

    def arrays(self, size: int = 64) -> Generator[UInt8[np.ndarray, "B H W 3"]]:
        """Yield all images in their order, at most `size` at a time, as views of the files."""
        for images in self._images:
            for start in range(0, len(images), size):
                yield images[start : start + size]

    def __reduce__(self) -> tuple[Callable[[], "SampleSet"], tuple[()]]:
        return partial(SampleSet, self.folder, checked=True), ()  # a worker maps the files itself


def _schema(kind: Kind) -> pa.Schema:
    fields = [
        pa.field("index", pa.int64(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("image", pa.binary(3 * kind.height * kind.width), nullable=False),
    ]
    fields += [pa.field(name, pa.string(), nullable=False) for name in kind.texts]
    metadata = {key: str(getattr(kind, key)) for key in METADATA}
    return pa.schema(fields, metadata={**metadata, seal.KEY: seal.BLANK})


def _open(path: Path) -> pa.Table:
    table = open_arrow(path).read_all()
    try:
        expected = _schema(Kind.of(table.schema))
    except (KeyError, ValueError):
        raise ValueError(f"{path} lacks {', '.join(METADATA)} in its metadata") from None
    if not table.schema.equals(expected):
        found = ", ".join(f"{field.name}: {field.type}" for field in table.schema)
        raise ValueError(f"{path} is not a shard of samples: its columns are {found}")
    return table


def _check_index(path: Path, index: np.ndarray, first: int) -> None:
    wrong = np.flatnonzero(index != np.arange(first, first + len(index)))
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(f"{path}: row {row} has index {index[row]}, expected {first + row}")


def _views(table: pa.Table) -> list[np.ndarray]:
    """Return the images of each record batch as arrays on the memory map, without a copy."""
    height, width, *_ = Kind.of(table.schema)
    size = 3 * height * width
    views: list[np.ndarray] = []
    for chunk in table["image"].chunks:
        data = chunk.buffers()[1]
        flat = np.frombuffer(data, np.uint8, count=len(chunk) * size, offset=chunk.offset * size)
        views.append(flat.reshape(len(chunk), height, width, 3))
    return views
