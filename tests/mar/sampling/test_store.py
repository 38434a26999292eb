"""A sample set gives back the images that were written, or names the shard that is wrong."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import ipc

from mar.files import seal
from mar.sampling.store import SampleSet, shard_path, write_shard


def make_images(count: int, height: int = 4, width: int = 4) -> torch.Tensor:
    rng = torch.Generator().manual_seed(count)
    return torch.randint(256, (count, 3, height, width), generator=rng).to(torch.uint8)


def write(folder: Path, number: int, count: int, first: int, *, side: int = 4) -> torch.Tensor:
    images = make_images(count, side, side)
    labels = torch.arange(first, first + count) % 3
    path = shard_path(folder, number)
    write_shard(path, images, labels=labels, first_index=first, num_classes=3, seed=0)
    return images


def test_images_and_labels_come_back_in_order(tmp_path: Path) -> None:
    images = torch.cat(
        [write(tmp_path, 0, 5, 0), write(tmp_path, 1, 1, 5), write(tmp_path, 2, 7, 6)]
    )
    samples = SampleSet(tmp_path)
    assert len(samples) == 13
    assert torch.equal(torch.stack([samples[index] for index in range(13)]), images)
    assert torch.equal(samples.stack([12, 5, 0]), images[[12, 5, 0]])
    assert torch.equal(samples.labels, torch.arange(13) % 3)
    parts = list(samples.arrays(size=3))
    assert [len(part) for part in parts] == [3, 2, 1, 3, 3, 1]
    assert np.array_equal(np.concatenate(parts), images.permute(0, 2, 3, 1).numpy())
    assert (samples.height, samples.width, samples.num_classes) == (4, 4, 3)


def test_any_arrow_reader_finds_rgb_rows(tmp_path: Path) -> None:
    images = make_images(2, height=2, width=3)
    labels = torch.tensor([7, 0])
    write_shard(tmp_path / "s.arrow", images, labels=labels, first_index=4, num_classes=9, seed=0)
    table = ipc.open_file(tmp_path / "s.arrow").read_all()
    assert table.column_names == ["index", "label", "image"]
    assert table["index"].to_pylist() == [4, 5]
    assert table["label"].to_pylist() == [7, 0]
    assert table["image"][1].as_py() == images[1].permute(1, 2, 0).numpy().tobytes()
    metadata = table.schema.metadata
    assert metadata.pop(b"seal").startswith(b"mar-sha256:")
    assert metadata == {b"height": b"2", b"width": b"3", b"num_classes": b"9", b"seed": b"0"}


def test_the_same_images_make_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a", 0, 3, 0)
    write(tmp_path / "b", 0, 3, 0)
    assert shard_path(tmp_path / "a", 0).read_bytes() == shard_path(tmp_path / "b", 0).read_bytes()


def test_images_may_be_written_from_a_view_in_another_layout(tmp_path: Path) -> None:
    images = make_images(2).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    labels = torch.zeros(2, dtype=torch.int64)
    write_shard(
        shard_path(tmp_path, 0), images, labels=labels, first_index=0, num_classes=1, seed=0
    )
    assert torch.equal(SampleSet(tmp_path).stack([0, 1]), images)


def test_a_worker_process_receives_the_folder_and_not_the_images(tmp_path: Path) -> None:
    images = write(tmp_path, 0, 400, 0)
    content = pickle.dumps(SampleSet(tmp_path))
    assert len(content) < 1000
    assert torch.equal(pickle.loads(content)[399], images[399])


def test_shards_of_several_record_batches_are_read(tmp_path: Path) -> None:
    images = write(tmp_path, 0, 6, 0)
    path = shard_path(tmp_path, 0)
    table = ipc.open_file(pa.BufferReader(path.read_bytes())).read_all()
    table = table.replace_schema_metadata({**table.schema.metadata, b"seal": seal.BLANK})
    with seal.sealing(path) as partial, ipc.new_file(partial, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    assert torch.equal(SampleSet(tmp_path).stack(list(range(6))), images)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no samples"):
        SampleSet(tmp_path)


def test_a_missing_shard_is_noticed(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path, number, 2, 2 * number)
    shard_path(tmp_path, 1).unlink()
    with pytest.raises(ValueError, match=r"00002\.arrow: row 0 has index 4, expected 2"):
        SampleSet(tmp_path)


def test_a_doubled_shard_is_noticed(tmp_path: Path) -> None:
    write(tmp_path, 0, 2, 0)
    write(tmp_path, 1, 2, 0)
    with pytest.raises(ValueError, match=r"00001\.arrow: row 0 has index 0, expected 2"):
        SampleSet(tmp_path)


def test_shards_of_another_size_are_named(tmp_path: Path) -> None:
    write(tmp_path, 0, 2, 0)
    write(tmp_path, 1, 2, 2, side=8)
    expected = r"00001\.arrow holds 8x8 images of 3 classes and seed 0, but 00000\.arrow 4x4 images"
    with pytest.raises(ValueError, match=expected):
        SampleSet(tmp_path)


def test_shards_of_another_seed_are_named(tmp_path: Path) -> None:
    write(tmp_path, 0, 2, 0)
    labels = torch.zeros(2, dtype=torch.int64)
    path = shard_path(tmp_path, 1)
    write_shard(path, make_images(2), labels=labels, first_index=2, num_classes=3, seed=2**70)
    with pytest.raises(ValueError, match=r"00001\.arrow holds .* seed 1180591620717411303424, but"):
        SampleSet(tmp_path)


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    write(tmp_path, 0, 2, 0)
    content = shard_path(tmp_path, 0).read_bytes()
    shard_path(tmp_path, 0).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"00000\.arrow is damaged"):
        SampleSet(tmp_path)


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    shard_path(tmp_path, 0).touch()
    with pytest.raises(ValueError, match=r"00000\.arrow is damaged: it is empty"):
        SampleSet(tmp_path)


def write_table(path: Path, table: pa.Table) -> None:
    metadata = {**(table.schema.metadata or {}), "seal": seal.BLANK}
    table = table.replace_schema_metadata(metadata)
    with seal.sealing(path) as partial, ipc.new_file(partial, table.schema) as writer:
        writer.write_table(table)


def test_a_table_of_something_else_is_named(tmp_path: Path) -> None:
    metadata = {"height": "4", "width": "4", "num_classes": "3", "seed": "0"}
    table = pa.table({"latent": [1.0]}).replace_schema_metadata(metadata)
    write_table(shard_path(tmp_path, 0), table)
    with pytest.raises(ValueError, match=r"00000\.arrow .* its columns are latent: double"):
        SampleSet(tmp_path)


def test_a_table_without_sizes_is_named(tmp_path: Path) -> None:
    write_table(shard_path(tmp_path, 0), pa.table({"index": [0]}))
    with pytest.raises(ValueError, match=r"00000\.arrow lacks height, width, num_classes, seed"):
        SampleSet(tmp_path)
