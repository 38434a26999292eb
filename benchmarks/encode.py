"""Time `encode` by precision and number of processes, and compare what it writes; JSON out.

Photographs are noise and the tokenizer's weights random; everything else is as in a project: the
stage decodes, encodes, writes, measures and publishes. Processes share the CPUs (threads of each:
CPUs / processes), or have a GPU each.

    python -m benchmarks.encode --processes 1 2
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image

from mar.files.atomic import digest
from mar.tokenizers.kl import AutoencoderConfig
from mar.tokenizers.registry import build_tokenizer, save_tokenizer
from stages import encode, prepare
from stages.stage import Stage
from stages.tracking import Run


SHARD = 64


def parse() -> argparse.Namespace:
    """Read the sizes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--size", type=int, default=64, help="of the images, in pixels")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--base-channels", type=int, default=32, help="of the tokenizer")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    return parser.parse_args()


def main() -> None:
    """Print a row for each precision and number of processes; fail where bytes depend on them."""
    sizes = parse()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        project = Path(name)
        make_project(project, sizes)
        for precision in sizes.precisions:
            write_params(project, sizes, precision)
            for number in sizes.processes:
                rows.append(measure(project, sizes, precision, number))
    print(json.dumps({**vars(sizes), "rows": rows}, indent=2))
    for precision in sizes.precisions:
        if len({row["digest"] for row in rows if row["precision"] == precision}) > 1:
            sys.exit(f"{precision}: the bytes depend on the number of processes")


def write_params(project: Path, sizes: argparse.Namespace, precision: str) -> None:
    """Write the sections that the stages read."""
    data = {"source": "folder", "path": "photos", "image_size": sizes.size, "seed": 0}
    latents = {"dtype": "float16", "flips": True, "shard_images": SHARD, "scale": None}
    sections = {
        "data": {**data, "held_out_fraction": 0.01, "max_unreadable": 0},
        "latents": {**latents, "batch_size": sizes.batch, "precision": precision},
    }
    (project / "params.yaml").write_text(json.dumps(sections))


def make_project(project: Path, sizes: argparse.Namespace) -> None:
    """Write images, prepare them, and write a tokenizer."""
    os.chdir(project)
    for index in range(sizes.images):
        file = Path("photos", str(index % 2), f"{index}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        shape = (sizes.size, sizes.size, 3)
        values = np.random.default_rng(index).integers(256, size=shape, dtype=np.uint8)
        Image.fromarray(values).save(file)
    write_params(project, sizes, "float32")
    prepare.main(stage("prepare", Path("work"), torch.device("cpu")))
    model = build_tokenizer(
        AutoencoderConfig(
            kind="kl",
            latent_channels=16,
            base_channels=sizes.base_channels,
            channel_multipliers=[1, 1, 2, 2],
            num_res_blocks=2,
            encoder_attention=True,
            kl_weight=1e-6,
        )
    )
    model.initialize(torch.Generator().manual_seed(0))
    save_tokenizer(encode.TOKENIZER, model)


def measure(
    project: Path, sizes: argparse.Namespace, precision: str, number: int
) -> dict[str, Any]:
    """Run the stage in some processes, and return its speed and what it wrote."""
    out = f"{precision}-{number}"
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    arguments = (queue, number, str(project), out, sizes.device)
    workers = [context.Process(target=work, args=(rank, *arguments)) for rank in range(number)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        sys.exit(f"{out}: a process failed")
    folder = project / "out" / out
    metrics = json.loads((folder / "metrics.json").read_text())
    shards = sorted((folder / "latents").iterdir())
    return {
        "precision": precision,
        "processes": number,
        "images_per_second": metrics["count"] / queue.get(),
        "precision_error": metrics["precision_error"],
        "digest": " ".join(digest(path)[:8] for path in shards),
    }


def work(rank: int, queue: Any, number: int, project: str, out: str, device: str) -> None:
    """Take part in the stage as one of some processes; the first one tells its seconds."""
    os.chdir(project)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // number))
    os.environ.setdefault("MAR_WORKERS", "0")
    rendezvous = f"file://{project}/rendezvous-{out}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=number)
    place = torch.device("cuda", rank % torch.cuda.device_count()) if device == "cuda" else device
    dist.barrier()
    begin = time.perf_counter()
    encode.main(stage(out, Path("work", out), torch.device(place)))
    if rank == 0:
        queue.put(time.perf_counter() - begin)
    dist.destroy_process_group()


def stage(name: str, folder: Path, device: torch.device) -> Stage:
    """Return a stage of its own folders, without a record."""
    return Stage(name, Path("out", name), folder, device, Run(name))


if __name__ == "__main__":
    main()
