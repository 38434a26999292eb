"""Rows come back in the order asked for, whatever files, device and number type hold them."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mar.latents.reading import fits
from mar.latents.rows import MappedRows, widened


VALUES = 3


def make_shards(sizes: list[int], dtype: str, *, highest: int) -> list[pa.RecordBatch]:
    """Return shards whose values tell image, mirrored or not, and place in the row."""
    starts = np.cumsum([0, *sizes])

    def column(start: int, size: int, mirrored: bool) -> pa.Array:
        images = np.arange(start, start + size)[:, None]
        values = highest - (10 * images + 5 * mirrored + np.arange(VALUES))
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1).astype(dtype)), VALUES)

    return [
        pa.record_batch({"a": column(start, size, False), "b": column(start, size, True)})
        for start, size in zip(starts[:-1].tolist(), sizes, strict=True)
    ]


def expected(images: torch.Tensor, mirrored: torch.Tensor, *, highest: int) -> torch.Tensor:
    return highest - (10 * images + 5 * mirrored)[:, None] - torch.arange(VALUES)


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    asked=st.lists(st.tuples(st.integers(0, 29), st.booleans()), max_size=40),
    flips=st.booleans(),
    on_device=st.booleans(),
)
def test_rows_come_in_the_order_asked_for(
    sizes: list[int], asked: list[tuple[int, bool]], flips: bool, on_device: bool
) -> None:
    images = torch.tensor([image % sum(sizes) for image, _ in asked], dtype=torch.int64)
    mirrored = torch.tensor([flag and flips for _, flag in asked], dtype=torch.bool)
    mapped = MappedRows(make_shards(sizes, "float16", highest=0), "a", "b", flips)
    rows = mapped.on(torch.device("cpu")) if on_device else mapped
    read = rows.read(mapped.places(images, mirrored))
    assert read.dtype == torch.float16
    assert torch.equal(read.long(), expected(images, mirrored, highest=0))


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize(
    ("dtype", "highest"), [("uint8", 2**8 - 1), ("uint16", 2**16 - 1), ("uint32", 2**32 - 1)]
)
def test_the_largest_codes_come_back(dtype: str, highest: int, on_device: bool) -> None:
    mapped = MappedRows(make_shards([3, 4], dtype, highest=highest), "a", "b", True)
    rows = mapped.on(torch.device("cpu")) if on_device else mapped
    images, mirrored = torch.tensor([6, 0, 3]), torch.tensor([False, True, False])
    read = widened(rows.read(mapped.places(images, mirrored)))
    assert read.dtype == torch.int64
    assert torch.equal(read, expected(images, mirrored, highest=highest))


def test_files_are_read_from_begin_to_end_once(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard holds its images first, then their mirror images."""
    taken: list[tuple[int, list[int]]] = []
    take: Any = np.take

    def record(matrix: Any, rows: Any, **options: Any) -> Any:
        taken.append((matrix.ctypes.data, rows.tolist()))
        return take(matrix, rows, **options)

    shards = make_shards([40, 30, 50], "float16", highest=0)
    mapped = MappedRows(shards, "a", "b", True)
    images = torch.randperm(120, generator=rng)
    places = mapped.places(images, torch.rand(120, generator=rng) < 0.5)
    monkeypatch.setattr(np, "take", record)
    mapped.read(places)
    columns = [shard.column(name).flatten() for shard in shards for name in ("a", "b")]
    assert [address for address, _ in taken] == [column.buffers()[1].address for column in columns]
    assert all(rows == sorted(set(rows)) for _, rows in taken)
    assert sum(len(rows) for _, rows in taken) == 120


def test_nothing_is_held_on_a_cpu_unasked() -> None:
    assert not fits(1, torch.device("cpu"))


def test_rows_beyond_the_last_are_refused() -> None:
    mapped = MappedRows(make_shards([3], "float16", highest=0), "a", "b", True)
    with pytest.raises(AssertionError):
        mapped.places(torch.tensor([3]), torch.tensor([False]))
