"""Compare a generation with that of another implementation: FLOPs, operations, waits, seconds.

    python -m benchmarks.generation --reference ADAPTER.py --json exact.json
    python -m benchmarks.generation --reference ADAPTER.py --json annealed.json --rounds 3 \
        --num-steps 64 --num-denoising-steps 100 --annealed 50 5

The defaults are the sizes of the table in `benchmarks/README.md`. With `--annealed`, we take that
many denoising steps in the first and in the last generation step, and the other implementation
`--num-denoising-steps` in each. Another implementation comes from a Python file, the adapter, that
defines

    def make_generate(sizes: Mapping[str, Any]) -> Callable[[], None]

where `sizes` are the fields of `Generation`. The function that it returns draws the tokens of
`batch` images with guidance, all randomness included, and does not decode them.
"""

import argparse
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.train_step import Operations, Waits
from benchmarks.training_step import (
    Sizes,
    Step,
    alternate,
    build,
    load_adapter,
    print_result,
    ratios,
)
from mar.model.mar import MAR
from mar.sampling.config import SampleConfig
from mar.sampling.generate import generate
from mar.sampling.labels import balanced_labels
from mar.sampling.noise import draw_noise
from stages import presets


@dataclass(frozen=True)
class Generation(Sizes):
    """What a generation computes; of `Sizes`, those of the training step are not used.

    Attributes:
        num_steps: Generation steps.
        num_denoising_steps: Of each token.
        guidance_scale: That the linear schedule ends with.
    """

    num_steps: int = 16
    num_denoising_steps: int = 25
    guidance_scale: float = 3.0


def parse() -> argparse.Namespace:
    """Read the sizes, and what to compare with."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for field in fields(Generation):
        kind = type(field.default)
        if field.name != "mask_ratio":
            parser.add_argument(
                f"--{field.name.replace('_', '-')}", type=kind, default=field.default
            )
    add = parser.add_argument
    add("--annealed", nargs=2, type=int, metavar=("FIRST", "LAST"), help="our denoising steps in "
        "the first and in the last generation step")  # fmt: skip
    add("--reference", type=Path, help="adapter of another implementation")
    add("--rounds", type=int, default=5, help="timed generations of each")
    add("--json", type=Path, help="where the numbers are written")
    return parser.parse_args()


def sample_config(sizes: Generation, annealed: tuple[int, int] | None = None) -> SampleConfig:
    """Return the section `sample` for the sizes: that of a preset but for numbers of steps."""
    first, last = annealed or (sizes.num_denoising_steps, None)
    folder = Path(__file__).resolve().parents[1] / presets.FOLDER
    sample = YAML(typ="safe").load(presets.resolve("imagenet256-mar-b", folder))["sample"]
    head = {**sample["head"], "temperature": 1.0, "num_steps": first, "final_num_steps": last}
    changes = {"num_steps": sizes.num_steps, "guidance_scale": sizes.guidance_scale, "head": head}
    return SampleConfig.model_validate({**sample, "labels": None, **changes})


def new_model(sizes: Sizes) -> MAR:
    """Return our model with fresh weights, ready to generate."""
    model = build(sizes)
    model.initialize(torch.Generator().manual_seed(0))
    return model.requires_grad_(False).to(sizes.device).eval()


def new_generation(sizes: Generation, annealed: tuple[int, int] | None = None) -> Step:
    """Return a function that generates with our model: noise, transformer and head."""
    model, config = new_model(sizes), sample_config(sizes, annealed)
    labels = balanced_labels(sizes.batch, None, sizes.classes)
    device = torch.device(sizes.device)

    def step() -> None:
        noise = draw_noise(model, range(sizes.batch), config).to(device)
        with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
            latents = generate(model, labels.to(device), noise, config)
        latents.cpu()  # waits for the device

    return step


def flop_counter() -> FlopCounterMode:
    """Return torch's counter, with the attention of CPUs, which it does not know."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def attention_flops(q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, **__: Any) -> int:
        return 2 * q.numel() * (k[-2] + k[-2] * v[-1] // q[-1])

    return FlopCounterMode(display=False, custom_mapping={attention: attention_flops})


def count(step: Step) -> dict[str, float]:
    """Return the FLOPs, operations and waits of a generation."""
    with flop_counter() as flops, Waits() as waits, Operations() as operations:
        step()
    return {
        "gflop": flops.get_total_flops() / 1e9,  # pyright: ignore[reportUnknownMemberType]
        "operations": operations.counts.total(),
        "waits": waits.counts.total(),
    }


def measure(steps: Mapping[str, Step], rounds: int, device: torch.device) -> dict[str, Any]:
    """Return the numbers of each implementation, and how many times as long as ours it takes."""
    for step in steps.values():
        step()  # warms up
    result: dict[str, Any] = {name: count(step) for name, step in steps.items()}
    times = alternate(steps, rounds, device)
    for name, clocks in times.items():
        result[name] |= {clock: statistics.median(values) for clock, values in clocks.items()}
        result[name]["times as long as ours"] = ratios(clocks, times["ours"])
    return result


def main() -> None:
    """Measure, print and write."""
    arguments = parse()
    names = [field.name for field in fields(Generation) if field.name != "mask_ratio"]
    sizes = Generation(**{name: getattr(arguments, name) for name in names})
    annealed = tuple(arguments.annealed) if arguments.annealed else None
    steps = {"ours": new_generation(sizes, annealed)}
    if arguments.reference is not None:
        make = load_adapter(arguments.reference, "make_generate")
        steps["reference"] = make(asdict(sizes))
    result = measure(steps, arguments.rounds, torch.device(sizes.device))
    print_result(
        {
            "sizes": asdict(sizes),
            "annealed": annealed,
            "threads": torch.get_num_threads(),
            **result,
        },
        arguments.json,
    )


if __name__ == "__main__":
    main()
