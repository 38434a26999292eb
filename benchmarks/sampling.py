"""Time the ways of sampling with the diffusion head: denoiser evaluations, seconds, quality.

    python -m benchmarks.sampling --json sampling.json
    python -m benchmarks.sampling --trained --score --images 1000 --rounds 1

Without `--trained`, a model with random weights is timed: 256 tokens in 64 generation steps, by
default. With it, the model in `out/` of the folder where this is run, with section `sample` of
`params.yaml` except for what a mode sets. All modes generate the same images of the same noise, in
turns.
"""

import argparse
import statistics
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from benchmarks.generation import Generation, new_model, sample_config
from benchmarks.training_step import Sizes, print_result
from mar.heads.diffusion_loss import DiffusionLoss
from mar.model.mar import MAR
from mar.sampling.config import SampleConfig
from mar.sampling.generate import generate
from mar.sampling.images import generate_images
from mar.sampling.labels import balanced_labels
from mar.sampling.noise import draw_noise
from stages.scoring import FOLDER, Scorer
from stages.weights import Weights, trained_weights


ANCESTRAL: dict[str, Any] = {"solver": "ancestral", "final_num_steps": None}
MODES: dict[str, dict[str, Any]] = {  # what each changes of sample.head
    **{f"constant {steps}": {**ANCESTRAL, "num_steps": steps} for steps in (100, 50, 25, 10)},
    "annealed 50 to 5": {**ANCESTRAL, "num_steps": 50, "final_num_steps": 5},
    **{
        f"{solver} {steps}": {
            "solver": solver,
            "num_steps": steps,
            "final_num_steps": None,
            "temperature": 1.0,
        }
        for solver in ("ddim", "dpm++")
        for steps in (10, 25)
    },
}


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--trained", action="store_true", help="the model in out/, not random weights")
    add("--score", action="store_true", help="compare the images with those of out/reference")
    add("--images", type=int, default=2, help="images of each mode")
    add("--batch", type=int, default=250, help="images generated at a time")
    add("--rounds", type=int, default=3, help="times that each mode is timed")
    add("--modes", nargs="+", choices=MODES, default=list(MODES), metavar="MODE",
        help=f"some of {', '.join(MODES)} (default: all)")  # fmt: skip
    add("--width", type=int, default=256, help="of the transformer with random weights")
    add("--tokens", type=int, default=256, help="of an image, with random weights")
    add("--num-steps", type=int, default=64, help="generation steps, with random weights")
    add("--device", default="cpu")
    add("--json", type=Path, help="where the numbers are written")
    arguments = parser.parse_args()
    if arguments.score and not arguments.trained:
        parser.error("--score goes with --trained")
    return arguments


def random_model(sizes: argparse.Namespace) -> MAR:
    """Return a model for the classes of ImageNet, with fresh weights."""
    return new_model(Sizes(width=sizes.width, tokens=sizes.tokens, classes=1000))


def random_sample(num_steps: int) -> dict[str, Any]:
    """Return a section `sample` for the model with random weights."""
    sample = sample_config(Generation(num_steps=num_steps, guidance_scale=2.0)).model_dump()
    return {**sample, "head": {**sample["head"], "x_0_bound": 4.0}}


def configs(sample: Mapping[str, Any], modes: list[str]) -> dict[str, SampleConfig]:
    """Return how each mode samples.

    Raises:
        ValueError: the model has another head than diffusion.
    """
    if sample["head"]["kind"] != "diffusion":
        raise ValueError(f"sample.head.kind: must be diffusion, got {sample['head']['kind']}")
    return {
        mode: SampleConfig.model_validate({**sample, "head": {**sample["head"], **MODES[mode]}})
        for mode in modes
    }


class Evaluations:
    """Counts the calls of a denoiser; one with both branches of guidance is one call."""

    def __init__(self, model: MAR) -> None:
        assert isinstance(model.head, DiffusionLoss)
        self.count = 0
        model.head.denoiser.final.norm.register_forward_pre_hook(self._add)

    def _add(self, *_: object) -> None:
        self.count += 1


def draw(
    model: MAR,
    weights: Weights | None,
    labels: Int[Tensor, " B"],
    indices: list[int],
    config: SampleConfig,
) -> UInt8[Tensor, "B 3 H W"] | None:
    """Generate a batch, and decode it if there is a tokenizer."""
    if weights is not None:
        return generate_images(
            model,
            weights.tokenizer,
            labels,
            indices,
            config,
            latent_std=weights.latent_std,
            autocast=nullcontext,
        )
    device = next(model.parameters()).device
    latents = generate(
        model, labels.to(device), draw_noise(model, indices, config).to(device), config
    )
    latents.cpu()  # waits for the device
    return None


def main() -> None:
    """Generate with each mode in turns; print and write what was found."""
    arguments = parse()
    weights = trained_weights(ema=True) if arguments.trained else None
    model = random_model(arguments) if weights is None else weights.mar
    model.to(arguments.device)
    if weights is not None:
        weights.tokenizer.to(arguments.device)
    scorer = None
    if weights is not None and arguments.score:
        scorer = Scorer.open(FOLDER, weights.image_size, weights.class_names, weights.preset)
    sample = random_sample(arguments.num_steps) if weights is None else weights.sample.model_dump()
    evaluations = Evaluations(model)
    labels = balanced_labels(arguments.images, None, model.num_classes)
    seconds: dict[str, list[float]] = {mode: [] for mode in arguments.modes}
    result: dict[str, dict[str, Any]] = {mode: {} for mode in arguments.modes}
    modes = configs(sample, arguments.modes)
    draw(model, weights, labels[:1], [0], modes[arguments.modes[-1]])  # warms up
    for _ in range(arguments.rounds):
        for mode, config in modes.items():
            evaluations.count = 0
            images: list[Tensor | None] = []
            start = time.perf_counter()
            images += [
                draw(model, weights, labels[part], part.tolist(), config)
                for part in torch.arange(arguments.images).split(arguments.batch)
            ]
            seconds[mode].append(time.perf_counter() - start)
            result[mode]["denoiser_evaluations"] = evaluations.count // len(images)
            if scorer is not None and "scores" not in result[mode]:
                pixels = torch.cat([part for part in images if part is not None])
                report, _ = scorer.score(pixels, labels, torch.device(arguments.device))
                result[mode]["scores"] = report["samples"]
    for mode, times in seconds.items():
        result[mode]["seconds_per_image"] = statistics.median(times) / arguments.images
    print_result(
        {
            "trained": arguments.trained,
            "device": arguments.device,
            "threads": torch.get_num_threads(),
            "images": arguments.images,
            "batch": min(arguments.batch, arguments.images),
            "sample": sample,
            "modes": result,
        },
        arguments.json,
    )


if __name__ == "__main__":
    main()
