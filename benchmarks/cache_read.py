"""Time the latent cache against one `.npz` file per image, on the same disk; JSON out.

Both hold the same synthetic latents: means and log variances of 16 x 16 x 16 latents in 16 bit, as
KL-16 makes them of an image of 256 px. "Cold" is after the operating system was asked to forget the
files. Each of the disk's own caches is left as it is.

    python -m benchmarks.cache_read --folder /path/on/the/disk
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mar.data.batches import batch_indices
from mar.data.workers import map_chunks
from mar.latents.cache import LatentCache, write_latents
from mar.latents.info import LatentsInfo


SHAPE = (16, 16, 16)  # channels, height and width of a latent of KL-16
SHARD = 16384
ROUNDS = 5
MAR_L = 254  # images/s of MAR-L's training step on an H100, by which a batch is judged


def parse() -> argparse.Namespace:
    """Read the sizes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="where the files are made, then removed")
    parser.add_argument("--images", type=int, default=200_000, help="in the cache")
    parser.add_argument("--files", type=int, default=20_000, help="of one image each")
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--batches", type=int, default=97, help="read from the cache")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="that read .npz files")
    parser.add_argument("--least", type=float, default=10.0, help="ratio below which this fails")
    parser.add_argument("--most", type=float, default=0.1, help="share of MAR-L's step, likewise")
    return parser.parse_args()


def main() -> None:
    """Make both, read both, and fail where the cache gains too little or a batch takes too long."""
    sizes = parse()
    found: dict[str, Any] = {"images": sizes.images, "files": sizes.files, "batch": sizes.batch}
    with tempfile.TemporaryDirectory(dir=sizes.folder) as name:
        folder = Path(name)
        make_cache(folder / "cache", sizes.images)
        files = make_npz(folder / "npz", sizes.files)
        found["cold"] = {"npz": time_npz(files, sizes, cold=True), **time_cold(folder, sizes)}
        found["warm"] = time_warm(files, folder, sizes)
        found["held"] = time_held(folder, sizes)
    cold, warm = found["cold"], found["warm"]
    found["ratio_cold"] = cold["cache"] / cold["npz"]
    found["ratio_warm"] = warm["cache"] / max(warm["npz"], warm["npz_workers"])
    found["share_of_step"] = cold["batch_seconds"] / (sizes.batch / MAR_L)
    print(json.dumps(found, indent=2))
    if min(found["ratio_cold"], found["ratio_warm"]) < sizes.least:
        sys.exit(f"the cache must be {sizes.least} times as fast as files of one image each")
    if found["share_of_step"] > sizes.most:
        sys.exit(f"a batch must be ready in {sizes.most} of the time that MAR-L's step takes")


def draw(count: int, number: int) -> Tensor:
    """Return moments of some images."""
    rng = torch.Generator().manual_seed(number)
    channels, height, width = SHAPE
    return torch.randn(count, 2 * channels, height, width, generator=rng)


def make_cache(folder: Path, count: int) -> None:
    """Write a latent cache."""
    for number, part in enumerate(torch.arange(count).split(SHARD)):
        write_latents(
            folder / f"{number:05d}.arrow",
            draw(len(part), number),
            None,
            labels=part % 1000,
            names=[f"n{int(index) % 1000:08d}/{index}.JPEG" for index in part],
            dtype="float16",
        )


def make_npz(folder: Path, count: int) -> list[Path]:
    """Write a file per image, uncompressed."""
    folder.mkdir()
    for part in torch.arange(count).split(SHARD):
        for index, moments in zip(part.tolist(), draw(len(part), 0).half().numpy(), strict=True):
            np.savez(folder / f"{index:06d}.npz", moments=moments)
    return sorted(folder.iterdir())


def time_npz(
    paths: list[Path], sizes: argparse.Namespace, *, workers: int = 0, cold: bool = False
) -> float:
    """Return the samples read a second, in batches of random order."""
    size = min(sizes.batch, len(paths))
    steps = range(len(paths) // size if cold else 2)
    chunks = [batch_indices(len(paths), size, seed=0, step=step).tolist() for step in steps]

    def read(chunk: list[int]) -> Tensor:
        rows: list[Tensor] = []
        for index in chunk:
            with np.load(paths[index]) as file:
                rows.append(torch.from_numpy(file["moments"]))
        return torch.stack(rows).float()

    if cold:
        forget(paths)
    begin = time.perf_counter()
    done = sum(len(batch) for batch in map_chunks(read, chunks, workers))
    return done / (time.perf_counter() - begin)


def time_cold(folder: Path, sizes: argparse.Namespace) -> dict[str, Any]:
    """Return what it takes to open a cache, to read it, and how much memory it takes then."""
    paths = sorted((folder / "cache").iterdir())
    found: dict[str, Any] = {"bytes": sum(path.stat().st_size for path in paths)}
    forget(paths)
    begin = time.perf_counter()
    cache = open_cache(folder, sizes)
    found["open_seconds"] = time.perf_counter() - begin
    forget(paths)
    with memory() as used:
        seconds = list(islice(intervals(cache, sizes), sizes.batches))
    return {
        **found,
        "cache": sizes.batch * len(seconds) / sum(seconds),
        "batch_seconds": sum(seconds) / len(seconds),
        "first_batch_seconds": seconds[0],  # with those that are read together with it
        "memory_mb": used,
    }


def time_warm(paths: list[Path], folder: Path, sizes: argparse.Namespace) -> dict[str, float]:
    """Return samples a second of the best of some rounds, in each of which all are measured."""
    cache = open_cache(folder, sizes)
    batches = intervals(cache, sizes)
    best = {"npz": 0.0, "npz_workers": 0.0, "cache": 0.0}
    for _ in range(ROUNDS):
        seconds = list(islice(batches, max(1, sizes.batches // 4)))
        speeds = {
            "npz": time_npz(paths, sizes),
            "npz_workers": time_npz(paths, sizes, workers=sizes.workers),
            "cache": sizes.batch * len(seconds) / sum(seconds),
        }
        best = {name: max(best[name], speed) for name, speed in speeds.items()}
    return {"workers": sizes.workers, **best}


def time_held(folder: Path, sizes: argparse.Namespace) -> dict[str, float]:
    """Return the same of a cache that the CPU's memory holds."""
    batches = open_cache(folder, sizes, on_device=True).batches(sizes.batch, seed=0, first_step=0)
    begin = time.perf_counter()
    next(batches)
    loaded = time.perf_counter()
    done = sum(len(values) for values, _ in islice(batches, sizes.batches))
    return {"load_seconds": loaded - begin, "cache": done / (time.perf_counter() - loaded)}


def open_cache(folder: Path, sizes: argparse.Namespace, *, on_device: bool = False) -> LatentCache:
    """Open the cache."""
    return LatentCache(folder / "cache", describe(sizes.images), on_device=on_device)


def intervals(cache: LatentCache, sizes: argparse.Namespace) -> Iterator[float]:
    """Yield how long each batch takes to come, where nothing else is done meanwhile."""
    begin = time.perf_counter()
    for _ in cache.batches(sizes.batch, seed=0, first_step=0):
        end = time.perf_counter()
        yield end - begin
        begin = end


def describe(count: int) -> LatentsInfo:
    """Return what `latents.json` would say."""
    return LatentsInfo(
        tokenizer="0" * 64,
        transform="none",
        dtype="float16",
        flips=False,
        count=count,
        num_classes=1000,
        class_counts=[],
        codebook_size=None,
        shape=list(SHAPE),
        latent_std=1.0,
        largest=None,
        mean=None,
        std=None,
        channel_mean=[],
        channel_std=[],
    )


def forget(paths: list[Path]) -> None:
    """Ask the operating system to keep nothing of some files in memory."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def memory() -> Iterator[dict[str, float]]:
    """Yield a record of this process's memory in MB, mapped files left out, filled when it ends."""
    record = {"before": anonymous(), "peak": 0.0}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.005):
            record["peak"] = max(record["peak"], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield record
    finally:
        ended.set()
        watcher.join()


def anonymous() -> float:
    """Return the memory of this process that no file stands for, in MB (Linux; elsewhere 0)."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0.0
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    main()
