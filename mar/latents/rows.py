"""One content of a latent cache as rows of a matrix: mapped from its files, or held on a device.

Shapes: K rows asked for, N rows of a matrix, V values of a row.
"""
# pyarrow has no types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Int, Int64, Shaped
from torch import Tensor
from tqdm import tqdm

from mar import distributed


CPU = torch.device("cpu")
PART_BYTES = 1 << 26  # copied to a device at a time


class MappedRows:
    """One content of all shards, images and mirror images, which stays in their files.

    A row's place counts the rows in the order in which they lie in the files: of each shard those
    of images, then those of mirror images.
    """

    def __init__(
        self, shards: Sequence[pa.RecordBatch], name: str, mirrored: str, flips: bool
    ) -> None:
        self._columns = [name, mirrored] if flips else [name]
        self._matrices = [
            column_rows(shard, column) for shard in shards for column in self._columns
        ]
        self._first_images = np.cumsum([0, *(len(shard) for shard in shards)])
        self._first_rows = np.cumsum([0, *(len(matrix) for matrix in self._matrices)])

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self._width * self._dtype.itemsize

    @property
    def _width(self) -> int:
        return self._matrices[0].shape[1]

    @property
    def _dtype(self) -> torch.dtype:
        return torch.from_numpy(self._matrices[0][:0].copy()).dtype

    @property
    def total_bytes(self) -> int:
        """Bytes of all rows."""
        return sum(matrix.nbytes for matrix in self._matrices)

    def places(
        self, images: Int[Tensor, " K"], mirrored: Bool[Tensor, " K"]
    ) -> Int64[np.ndarray, " K"]:
        """Return where the rows of some images are, of the mirrored image where asked for."""
        index, flipped = images.numpy(), mirrored.numpy()
        assert not flipped.any() or len(self._columns) == 2
        assert ((index >= 0) & (index < self._first_images[-1])).all()
        shards = np.searchsorted(self._first_images, index, side="right") - 1
        matrices = shards * len(self._columns) + flipped
        return self._first_rows[matrices] + index - self._first_images[shards]

    def read(
        self, places: Int64[np.ndarray, " K"], *, pinned: bool = False
    ) -> Shaped[Tensor, "K V"]:
        """Read rows as they are in the files, which are read from their begin to their end.

        Args:
            places: Where they are, in any order, which is that of the result.
            pinned: Return them in memory that a GPU can copy from while it computes.
        """
        order = np.argsort(places)
        ends = np.searchsorted(places[order], self._first_rows)
        result = _empty((len(places), self._width), self._dtype, CPU, pinned=pinned)
        values = result.numpy()
        for number in np.flatnonzero(np.diff(ends)):
            here = order[ends[number] : ends[number + 1]]
            chosen = places[here] - self._first_rows[number]
            values[here] = np.take(self._matrices[number], chosen, axis=0)
        return result

    def on(self, device: torch.device) -> "DeviceRows":
        """Copy all rows to a device."""
        shape = (int(self._first_rows[-1]), self._width)
        held = torch.empty(shape, dtype=self._dtype, device=device)
        size = max(1, PART_BYTES // self.row_bytes)
        hidden = not distributed.is_main()
        with tqdm(
            total=len(held), desc=f"latents to {device}", delay=3, leave=False, disable=hidden
        ) as progress:
            for number, start, part in self.parts(size):
                first = int(self._first_rows[number]) + start
                held[first : first + len(part)] = torch.from_numpy(part.copy()).to(device)
                progress.update(len(part))
        return DeviceRows(held)

    def parts(self, size: int) -> Iterator[tuple[int, int, Shaped[np.ndarray, "N V"]]]:
        """Yield `size` rows at a time, with the number of their matrix and the first one in it."""
        for number, matrix in enumerate(self._matrices):
            for start in range(0, len(matrix), size):
                yield number, start, matrix[start : start + size]

    def image(self, number: int, row: int) -> tuple[int, int]:
        """Return the shard and the image of a row of a matrix."""
        shard = number // len(self._columns)
        return shard, int(self._first_images[shard]) + row


class DeviceRows:
    """The same as one tensor on a device."""

    def __init__(self, held: Shaped[Tensor, "N V"]) -> None:
        self._held = held

    def read(self, places: Int64[np.ndarray, " K"]) -> Shaped[Tensor, "K V"]:
        """Return rows, on the device."""
        held = self._held
        out = _empty((len(places), held.shape[1]), held.dtype, held.device)
        return torch.index_select(held, 0, moved(torch.from_numpy(places), held.device), out=out)


def column_rows(shard: pa.RecordBatch, column: str) -> Shaped[np.ndarray, "N V"]:
    """Return a column of fixed-size lists as a matrix, without copying it.

    Unsigned integers come as signed ones of the same bits, which torch can index on every device.
    """
    values = shard.column(column)
    matrix = values.flatten().to_numpy(zero_copy_only=True).reshape(len(values), -1)
    signed = {"uint16": np.int16, "uint32": np.int32}.get(str(matrix.dtype))
    return matrix if signed is None else matrix.view(signed)


def widened(values: Shaped[Tensor, "K V"]) -> Shaped[Tensor, "K V"]:
    """Return floating-point numbers as float32, and the integers that were written as int64."""
    if values.is_floating_point():
        return _empty(values.shape, torch.float32, values.device).copy_(values)
    return values.long() & ((1 << 8 * values.element_size()) - 1)


def moved(values: Shaped[Tensor, "..."], device: torch.device) -> Shaped[Tensor, "..."]:
    """Return a tensor on a device, without waiting for it."""
    if device.type == "cuda" and not values.is_pinned():
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def _empty(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, *, pinned: bool = False
) -> Tensor:
    """Return an unset tensor; on the CPU in memory of numpy.

    It asks for huge pages, which torch does not: handing out small ones took five times as long as
    the numbers of a batch to arrive (Linux 6.18).
    """
    if pinned or device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device, pin_memory=pinned)
    return torch.from_numpy(np.empty(shape, torch.empty(0, dtype=dtype).numpy().dtype))
