"""Measure training steps of MAR-B, L and H on a GPU: seconds, images/s, MFU, peak memory.

    python -m benchmarks.gpu --json gpu.json [--reference ADAPTER.py] [--batch 64]

Our step is measured as it is and compiled, both under autocast to bfloat16. With the adapter of
another implementation (`benchmarks.training_step`), its step is measured beside them, in turns.
`--smoke` measures a tiny model on the CPU, to show that this program works.
"""

import argparse
import gc
import statistics
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.training_step import Sizes, all_steps, alternate, build, print_result
from mar.model.flops import peak_flops, step_flops


MODELS = {  # MAR, Table 4: transformer and denoiser
    "MAR-B": Sizes(width=768, blocks=12, heads=12, denoiser_blocks=6, denoiser_width=1024),
    "MAR-L": Sizes(width=1024, blocks=16, heads=16, denoiser_blocks=8, denoiser_width=1280),
    "MAR-H": Sizes(width=1280, blocks=20, heads=16, denoiser_blocks=12, denoiser_width=1536),
}
SMOKE = {
    "tiny": Sizes(width=16, blocks=1, heads=2, denoiser_blocks=1, denoiser_width=16, tokens=16)
}
WARM_UP = 5  # steps before the clock starts; the first ones compile


def parse() -> argparse.Namespace:
    """Read what to measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batch", type=int, default=64, help="images of a step")
    parser.add_argument("--rounds", type=int, default=10, help="timed steps of each")
    parser.add_argument("--reference", type=Path, help="adapter of another implementation")
    parser.add_argument("--json", type=Path, help="where the numbers are written")
    parser.add_argument("--smoke", action="store_true", help="a tiny model on the CPU, two rounds")
    return parser.parse_args()


def measure(sizes: Sizes, reference: Path | None, rounds: int) -> dict[str, Any]:
    """Return the numbers of each step of one model."""
    device = torch.device(sizes.device)
    flops = step_flops(build(sizes), sizes.batch, sizes.num_hidden)
    peak = peak_flops(device)
    result: dict[str, Any] = {"gflop": flops / 1e9}
    steps = all_steps(sizes, reference, compiled=device.type == "cuda")
    memory: dict[str, int] = {}
    for name, step in steps.items():
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        for _ in range(WARM_UP):
            step()
        if device.type == "cuda":  # above what all models of this comparison hold
            memory[name] = torch.cuda.max_memory_allocated(device) - held
    times = alternate(steps, rounds, device)
    for name in steps:
        seconds = statistics.median(times[name]["wall"])
        result[name] = {
            "seconds": seconds,
            "images/s": sizes.batch / seconds,
            "mfu": None if peak is None else flops / seconds / peak,  # of our FLOPs, for all
            "bytes above what was held": memory.get(name),
        }
    return result


def main() -> None:
    """Measure, print and write.

    Raises:
        SystemExit: there is no GPU, and `--smoke` is not given.
    """
    arguments = parse()
    if not arguments.smoke and not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu needs a CUDA GPU; --smoke tries it on the CPU")
    device = "cpu" if arguments.smoke else "cuda"
    models = SMOKE if arguments.smoke else {name: MODELS[name] for name in arguments.models}
    result: dict[str, Any] = {
        "device": "cpu" if arguments.smoke else torch.cuda.get_device_name(),
        "torch": torch.__version__,
    }
    for name, sizes in models.items():
        batch = 2 if arguments.smoke else arguments.batch
        classes = 10 if arguments.smoke else 1000
        sizes = replace(sizes, batch=batch, classes=classes, device=device)
        rounds = 2 if arguments.smoke else arguments.rounds
        result[name] = {"sizes": asdict(sizes), **measure(sizes, arguments.reference, rounds)}
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
    print_result(result, arguments.json)


if __name__ == "__main__":
    main()
