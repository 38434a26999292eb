"""Measure what `prepare` costs, and what reading single images at random costs afterwards.

The same JPEG images lie in a folder, in Parquet files written in three ways, and in tar archives.
Each is listed from nothing and once more, and then single images are read in random order by one
process: their bytes alone, and decoded. Everything is in the system's cache, so this is what the
processor does, not the disk; the bytes read for one image say what a disk has to do. Beside it, how
long a manifest of as many rows as ImageNet has takes. Each measurement is a process of its own.

    python -m benchmarks.prepare --images 20000 --pixels 128 --workers 2
"""

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from pydantic import TypeAdapter

from mar.data.dataset import ImageSet
from mar.data.manifest import SHARD_COLUMNS, Manifest, Row, Rows, write_manifest
from mar.data.reading import read_file
from mar.data.shards import read_image
from mar.sources.registry import DataConfig
from mar.sources.source import DataSource, Surroundings


CLASSES = 100
IN_ROW_GROUP = 100  # as the Hugging Face Hub writes images
IN_SHARD = 2_000
POOL = 64  # images that differ; the others differ in a comment
IMAGENET = 1_281_167
OPTIONS: dict[str, dict[str, Any]] = {
    "parquet, snappy": {},
    "parquet, uncompressed": {"compression": "none"},
    "parquet, zstd": {"compression": "zstd"},
}
COMMON = {"image_size": 64, "held_out_fraction": 0.01, "max_unreadable": 0, "seed": 0}
PARQUET = {
    "source": "parquet",
    "image_column": "image",
    "label_column": "label",
    "caption_column": None,
}


def parse() -> argparse.Namespace:
    """Read the sizes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--pixels", type=int, default=128, help="height; the width is 4/3 of it")
    parser.add_argument("--reads", type=int, default=1_000, help="images read at random")
    parser.add_argument("--rows", type=int, default=IMAGENET, help="rows of a manifest")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, help="where a temporary folder is made")
    return parser.parse_args()


def jpegs(num: int, height: int) -> Iterator[tuple[bytes, int]]:
    """Yield images of blurred noise and their labels; a comment makes each file another."""
    rng = np.random.default_rng(0)
    pool: list[bytes] = []
    for _ in range(min(num, POOL)):
        noise = rng.integers(0, 256, (height // 4, height // 3, 3), dtype=np.uint8)
        image = Image.fromarray(noise).resize((height * 4 // 3, height), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=90)
        pool.append(file.getvalue())
    for index in range(num):
        content = pool[index % len(pool)]
        yield content[:2] + b"\xff\xfe\x00\x0a%08d" % index + content[2:], index % CLASSES


def make(root: Path, num: int, height: int) -> None:
    """Write all images in all ways."""
    images: list[bytes] = []
    labels: list[int] = []
    for index, (content, label) in enumerate(jpegs(num, height)):
        file = root / "folder" / f"{label:03d}" / f"{index:07d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        images.append(content)
        labels.append(label)
        if len(images) == IN_SHARD or index == num - 1:
            _write_shards(root, index // IN_SHARD, images, labels)
            images, labels = [], []


def _write_shards(root: Path, shard: int, images: list[bytes], labels: list[int]) -> None:
    structs = pa.array([{"bytes": image, "path": None} for image in images])
    for name, options in OPTIONS.items():
        (root / name).mkdir(exist_ok=True)
        path = root / name / f"{shard:05d}.parquet"
        table = pa.table({"image": structs, "label": labels})
        pq.write_table(table, path, row_group_size=IN_ROW_GROUP, **options)
    (root / "webdataset").mkdir(exist_ok=True)
    with tarfile.open(root / "webdataset" / f"{shard:05d}.tar", "w") as archive:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            for ending, content in (("jpg", image), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{index:06d}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def section(name: str, root: Path) -> DataSource:
    """Return the section `data` for one of the ways."""
    values: dict[str, Any] = {**COMMON, "path": str(root / name)}
    if name == "folder":
        values["source"] = "folder"
    elif name == "webdataset":
        values |= {"source": "webdataset", "label": "cls", "caption": None, "class_names": None}
    else:
        values |= {**PARQUET, "class_names": None}
    adapter: TypeAdapter[DataSource] = TypeAdapter(DataConfig)
    return adapter.validate_python(values)


def prepare(name: str, root: Path, workers: int) -> dict[str, float]:
    """List the images of one of the ways, as the stage does; write the manifest."""
    surroundings = Surroundings(root, workers, 10**8, root / "kept")
    start = time.perf_counter()
    collection = section(name, root).collect(surroundings)
    write_manifest(root / f"{name}.manifest", collection.class_names, collection.rows)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "images_per_second": len(collection.rows) / seconds}


def read(name: str, root: Path, num: int) -> dict[str, float]:
    """Read single images at random: their bytes, and decoded to squares of 64 px."""
    images = ImageSet(root / f"{name}.manifest", "train", 64, root=root / name)
    manifest = Manifest(root / f"{name}.manifest", "train")
    rng = torch.Generator().manual_seed(0)
    order = torch.randperm(len(images), generator=rng)[:num].tolist()
    stored = size = 0
    start = time.perf_counter()
    for index in order:
        place = manifest.place(index)
        if place is None:
            content, _ = read_file(root / name / manifest.path(index))
        else:
            content = read_image(root / name, place, manifest.size(index))
        size += len(content)
        stored += len(content) if place is None else place.stored
    bytes_alone = time.perf_counter() - start
    start = time.perf_counter()
    for index in order:
        images[index]
    decoded = time.perf_counter() - start
    return {
        "bytes_per_second_of_images": size / bytes_alone,
        "images_per_second": len(order) / bytes_alone,
        "images_per_second_decoded": len(order) / decoded,
        "read_per_byte_of_image": stored / size,
    }


def read_row_groups(name: str, root: Path, num: int) -> dict[str, float]:
    """Read single images as pyarrow does it alone: with their whole row group."""
    rng = torch.Generator().manual_seed(0)
    files = [pq.ParquetFile(path) for path in sorted((root / name).glob("*.parquet"))]
    start = time.perf_counter()
    for index in torch.randint(len(files) * 10**6, (num,), generator=rng).tolist():
        file = files[index % len(files)]
        group = file.read_row_group(index // len(files) % file.num_row_groups, ["image.bytes"])
        group["image"][0].as_py()
    return {"images_per_second": num / (time.perf_counter() - start)}


def manifest_of_files(root: Path, num: int) -> dict[str, float]:
    """Write and read a manifest of images in files of their own."""
    rows = (
        Row(f"train/n{label:08d}/{index}.JPEG", None, label, 110_000, _digest(index), "train")
        for index in range(num)
        for label in (index % 1000,)
    )
    return _write_and_read(root / "files.manifest", lambda: Rows.collect(rows))


def manifest_of_shards(root: Path, num: int) -> dict[str, float]:
    """Write and read a manifest of images in shards."""
    index = np.arange(num)
    shards = [f"data/train-{shard:05d}-of-00294.parquet" for shard in range(294)]
    shard_of = pa.array((index * 294 // num).astype(np.int32))
    shard = pa.DictionaryArray.from_arrays(shard_of, pa.array(shards))
    codec = pa.DictionaryArray.from_arrays(pa.array(np.zeros(num, np.int32)), pa.array(["snappy"]))
    arrays = [
        pa.array([f"{shards[at * 294 // num]}/{at}" for at in range(num)]),
        pa.nulls(num, pa.binary()),
        pa.array((index % 1000).astype(np.int32)),
        pa.array(110_000 + index % 9_999),
        pa.array([_digest(at) for at in range(num)], pa.binary(32)),
        pa.array(["train"]).take(pa.array(np.zeros(num, np.int8))),
        shard,
        pa.array(110_000 * index),
        pa.array(131_000 + index % 99),
        codec,
        pa.array(131_072 + 0 * index),
        pa.array(index % 65_536),
    ]
    rows = Rows(pa.table(arrays, schema=SHARD_COLUMNS))
    return _write_and_read(root / "shards.manifest", lambda: rows)


def read_manifest(path: Path) -> dict[str, float]:
    """Open a manifest, and look up rows at random as a training does."""
    start = time.perf_counter()
    manifest = Manifest(path, "train")
    opened = time.perf_counter() - start
    start = time.perf_counter()
    for index in torch.randint(len(manifest), (10_000,)).tolist():
        for column in (manifest.path, manifest.size, manifest.sha256, manifest.place):
            column(index)
    return {"open_seconds": opened, "rows_per_second": 10_000 / (time.perf_counter() - start)}


def _write_and_read(path: Path, rows: Callable[[], Rows]) -> dict[str, float]:
    start = time.perf_counter()
    write_manifest(path, [str(label) for label in range(1000)], rows())
    return {"write_seconds": time.perf_counter() - start, "bytes": path.stat().st_size}


def _digest(index: int) -> bytes:
    return hashlib.sha256(b"%d" % index).digest()


def apart(function: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """Return what a function returns in a new process, and what it took there."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(sender, function, arguments))
    process.start()
    found = receiver.recv()
    process.join()
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def _call(sender: Any, function: Callable[..., dict[str, float]], arguments: Any) -> None:
    """Call a function, and measure the processor time and memory of it and its workers."""
    ended = threading.Event()
    peak = [_megabytes()] * 2

    def watch() -> None:
        while not ended.wait(0.1):
            peak[1] = max(peak[1], _megabytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    before = _cpu_seconds()
    found = function(*arguments)
    ended.set()
    watcher.join()
    found |= {"cpu_seconds": _cpu_seconds() - before}
    sender.send(found | {"megabytes_before": peak[0], "megabytes_at_most": peak[1]})


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _megabytes() -> float:
    """Return the memory of this process and its workers; what they share counts once."""
    workers = [str(process.pid) for process in multiprocessing.active_children()]
    total = 0.0
    for process in ("self", *workers):
        with suppress(OSError):  # it has ended
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
            total += int(text.partition("\nPss:")[2].split()[0]) / 1024
    return total


def main() -> None:
    """Measure everything and print JSON."""
    sizes = parse()
    found: dict[str, Any] = {key: value for key, value in vars(sizes).items() if key != "folder"}
    with tempfile.TemporaryDirectory(dir=sizes.folder) as folder:
        root = Path(folder)
        make(root, sizes.images, sizes.pixels)
        for name in ("folder", *OPTIONS, "webdataset"):
            found[name] = {
                "prepare": apart(prepare, name, root, sizes.workers),
                "prepare again": apart(prepare, name, root, sizes.workers),
                "read": apart(read, name, root, sizes.reads),
            }
        name = next(iter(OPTIONS))
        found[f"{name}, by whole row groups"] = {
            "read": apart(read_row_groups, name, root, sizes.reads // 10)
        }
        for name, write in (("files", manifest_of_files), ("shards", manifest_of_shards)):
            found[f"manifest of {sizes.rows} rows, {name}"] = {
                "write": apart(write, root, sizes.rows),
                "read": apart(read_manifest, root / f"{name}.manifest"),
            }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
