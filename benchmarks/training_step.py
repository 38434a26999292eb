"""A training step of this repository's model or of another implementation, as one function.

Another implementation comes from a Python file, the adapter, that defines

    def make_step(sizes: Mapping[str, Any]) -> Callable[[], None]

where `sizes` are the fields of `Sizes`. The function that it returns takes one whole training step
on data of its own: draws, forward, backward, clipping, optimiser, EMA.
"""

import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mar.latents.posterior import LatentShape
from mar.model.compilation import compile_blocks
from mar.model.mar import MAR, GeneratorConfig
from mar.training.generator import TrainingConfig, new_trainer
from mar.training.trainer import Trainer


Step = Callable[[], None]

TRAINING = TrainingConfig(
    seed=0,
    steps=1_000_000,
    batch_size=1,
    lr=1e-4,
    lr_schedule="constant",
    warmup_steps=10,
    beta_1=0.9,
    beta_2=0.95,
    weight_decay=0.02,
    gradient_clip=3.0,
    ema_decay=0.9999,
    averages=None,
    curve_steps=100,
    preview_steps=100,
)


@dataclass(frozen=True)
class Sizes:
    """What a step computes.

    Attributes:
        width: Of encoder, decoder and z.
        blocks: Of the encoder; as many of the decoder.
        heads: Attention heads.
        denoiser_blocks: Residual blocks of the denoiser.
        denoiser_width: Its width.
        tokens: Of an image, a square number.
        channels: Of a token.
        condition_tokens: Slots that hold the class (MAR: buffer size).
        classes: Of the data.
        dropout: On attention and on projections.
        draws: Noise samples of a token.
        batch: Images.
        mask_ratio: Share of hidden tokens; None to draw it in each step.
        device: Where the step runs; on `cuda` under autocast to bfloat16.
    """

    width: int = 256
    blocks: int = 4
    heads: int = 4
    denoiser_blocks: int = 3
    denoiser_width: int = 512
    tokens: int = 256
    channels: int = 16
    condition_tokens: int = 64
    classes: int = 10
    dropout: float = 0.1
    draws: int = 4
    batch: int = 8
    mask_ratio: float | None = 0.85
    device: str = "cpu"

    @property
    def num_hidden(self) -> int | None:
        """Return the number of hidden tokens, if it is always the same."""
        return None if self.mask_ratio is None else -int(-self.mask_ratio * self.tokens // 1)


def build(sizes: Sizes) -> MAR:
    """Return our model."""
    side = int(sizes.tokens**0.5)
    widths = {"width": sizes.width, "blocks": sizes.blocks, "heads": sizes.heads}
    denoiser = {"blocks": sizes.denoiser_blocks, "width": sizes.denoiser_width}
    config = GeneratorConfig.model_validate(
        {
            "size": {
                f"{part}_{name}": value
                for part in ("encoder", "decoder")
                for name, value in widths.items()
            },
            "attention": "bidirectional",
            "order": "random",
            "patch_size": 1,
            "condition_tokens": sizes.condition_tokens,
            "dropout": sizes.dropout,
            "label_drop": 0.1,
            "mask_ratio": {"min": 0.7, "std": 0.25},
            "head": {
                "kind": "diffusion",
                "size": denoiser,
                "noise_samples_per_token": sizes.draws,
            },
        }
    )
    return MAR(config, LatentShape(sizes.channels, side, side), sizes.classes)


def new_step(sizes: Sizes, *, compiled: bool = False) -> tuple[Step, Trainer[MAR]]:
    """Return a step of our model, and its trainer."""
    device = torch.device(sizes.device)
    model = build(sizes).to(device)
    trainer = new_trainer(model, TRAINING)
    if compiled:
        compile_blocks(model)
    rng = torch.Generator(device).manual_seed(0)
    latents = torch.randn(
        sizes.batch, *(model.latent.channels, model.latent.height, model.latent.width)
    ).to(device)
    labels = torch.arange(sizes.batch, device=device) % sizes.classes

    def step() -> None:
        draws = model.draw(sizes.batch, rng)
        if (hidden := sizes.num_hidden) is not None:
            draws = replace(
                draws, num_hidden=hidden, head=model.head.draw(sizes.batch, hidden, rng)
            )
        on_gpu = device.type == "cuda"
        with torch.autocast("cuda", dtype=torch.bfloat16) if on_gpu else nullcontext():
            loss = model(latents, labels, draws)
        trainer.update([(loss, {})])

    return step, trainer


def load_adapter(path: Path, name: str = "make_step") -> Callable[[Mapping[str, Any]], Step]:
    """Return a function of another implementation's adapter, by its name.

    Raises:
        ValueError: the file is not there, or defines no such function.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ValueError(f"--reference: must be a Python file, got {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    make: Callable[[Mapping[str, Any]], Step] | None = getattr(module, name, None)
    if not callable(make):
        raise ValueError(f"--reference: {path} must define {name}(sizes)")
    return make


def all_steps(sizes: Sizes, reference: Path | None, *, compiled: bool) -> dict[str, Step]:
    """Return the steps to compare, by name; ours comes first."""
    steps = {"ours": new_step(sizes)[0]}
    if compiled:
        steps["ours, compiled"] = new_step(sizes, compiled=True)[0]
    if reference is not None:
        steps["reference"] = load_adapter(reference)(asdict(sizes))
    return steps


def alternate(
    steps: Mapping[str, Step], rounds: int, device: torch.device
) -> dict[str, dict[str, list[float]]]:
    """Return the seconds of each step in each round; the steps take turns.

    So a machine that is busy for a while slows all of them. Besides the seconds that pass (wall),
    these are the seconds of all cores (cpu), which depend less on other programs.
    """
    found = {name: {"wall": [0.0] * rounds, "cpu": [0.0] * rounds} for name in steps}
    for index in range(rounds):
        for name, step in steps.items():
            _wait(device)
            start, cpu_start = time.perf_counter(), time.process_time()
            step()
            _wait(device)
            found[name]["wall"][index] = time.perf_counter() - start
            found[name]["cpu"][index] = time.process_time() - cpu_start
    return found


def ratios(times: Mapping[str, list[float]], ours: Mapping[str, list[float]]) -> dict[str, float]:
    """Return how many times as long another step takes: the median over rounds of its ratio."""
    return {
        clock: statistics.median(
            other / own for other, own in zip(times[clock], ours[clock], strict=True)
        )
        for clock in times
    }


def print_result(result: Mapping[str, Any], path: Path | None) -> None:
    """Print a result as JSON, and write it to a file if one is given."""
    text = json.dumps(result, indent=1)
    print(text)
    if path is not None:
        path.write_text(text + "\n")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
