"""Where the time of a generation goes: batch, tokens, generation steps, denoising steps.

    python -m benchmarks.generation_times > times.md
    python -m benchmarks.generation_times --rounds 0          # counts alone

Two tables in Markdown. The first has a small model on the CPU: seconds of CPU time and operations
that are dispatched, FLOPs of matrix products for an image, and how transformer, head and decoder
share them. The second has the shares of MAR-B, L and H with the released tokenizer's decoder. FLOPs
are counted on networks without numbers: those of the transformer in nine generation steps, and in
between as if they were linear in the steps.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from benchmarks.generation import Generation, flop_counter, new_generation, sample_config
from benchmarks.gpu import MODELS
from benchmarks.train_step import Operations
from benchmarks.training_step import build
from mar.heads.annealing import AnnealedSampler
from mar.heads.base import Condition, Noise
from mar.model.mar import MAR
from mar.model.masking import num_hidden_after
from mar.sampling.config import SampleConfig
from mar.tokenizers.interface import Tokenizer
from mar.tokenizers.kl import AutoencoderConfig
from mar.tokenizers.registry import build_tokenizer


SMALL = Generation(width=128, blocks=2, heads=4, denoiser_blocks=3, denoiser_width=256, batch=4,
                   condition_tokens=16, num_steps=16, num_denoising_steps=25)  # fmt: skip
ANNEALED = (50, 5)
VARIED: dict[str, tuple[int | str, ...]] = {
    "batch": (1, 4, 16),
    "tokens": (64, 256),
    "num_steps": (16, 64, 256),
    "num_denoising_steps": (10, 25, 100, "annealed"),
}
META = torch.device("meta")
KL16 = AutoencoderConfig(kind="kl", latent_channels=16, base_channels=128,
                         channel_multipliers=[1, 1, 2, 2, 4], num_res_blocks=2,
                         encoder_attention=True, kl_weight=1e-6)  # fmt: skip


@dataclass(frozen=True)
class Flops:
    """Of an image: those of the transformer, of the head and of the decoder."""

    transformer: float
    head: float
    decoder: float

    @property
    def shares(self) -> str:
        """How they share the whole, in per cent."""
        total = self.transformer + self.head + self.decoder
        parts = (self.transformer, self.head, self.decoder)
        return " / ".join(f"{100 * part / total:.0f}" for part in parts)


@dataclass(frozen=True)
class Row:
    """One generation: its sizes, and whether the denoising steps are annealed."""

    sizes: Generation
    annealed: bool

    @property
    def course(self) -> tuple[int, int] | None:
        """The denoising steps of the first and last generation step."""
        return ANNEALED if self.annealed else None


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--rounds", type=int, default=3, help="timed generations of each row; 0 counts alone")
    add("--width", type=int, default=SMALL.width, help="of the small transformer")
    add("--models", nargs="*", choices=MODELS, default=list(MODELS), help="of the second table")
    return parser.parse_args()


def rows(sizes: Generation) -> Iterator[Row]:
    """Yield the small generation, and those that differ from it in one size."""
    yield Row(sizes, annealed=False)
    for name, values in VARIED.items():
        for value in values:
            if value == "annealed":
                yield Row(sizes, annealed=True)
            elif value != getattr(sizes, name):
                yield Row(replace(sizes, **{name: value}), annealed=False)


def count_flops(row: Row, tokenizer: Tokenizer) -> Flops:
    """Count the FLOPs of an image, in a batch of one."""
    with META:
        model = build(replace(row.sizes, batch=1)).eval().requires_grad_(False)
    hidden = [model.num_tokens, *num_hidden_after(model.num_tokens, row.sizes.num_steps)]
    config = sample_config(row.sizes, row.course)
    counted = sorted({round(part * (row.sizes.num_steps - 1) / 8) for part in range(9)})
    of_transformer: list[int] = []
    evaluations = 0
    predict = model.predictor(
        model.transformer.condition.nothing(1), torch.zeros(1, model.num_tokens, dtype=torch.long,
                                                            device=META), guided=True, cached=True
    )  # fmt: skip
    tokens = torch.zeros(1, model.num_tokens, model.channels, device=META)
    places = torch.zeros(1, model.num_tokens, dtype=torch.long, device=META)
    for step, left in enumerate(hidden[1:]):
        known, drawn = model.num_tokens - hidden[step], hidden[step] - left
        if step in counted:
            with flop_counter() as counter:
                predict(tokens, places[:, :known], places[:, :drawn])
            of_transformer.append(counter.get_total_flops())
        sampler = config.head.at_step(step, row.sizes.num_steps)
        assert isinstance(sampler, AnnealedSampler)
        evaluations += drawn * sampler.num_steps
    transformer = float(np.interp(range(row.sizes.num_steps), counted, of_transformer).sum())
    latents = torch.zeros(1, *_latent(model), device=META)
    with flop_counter() as counter:
        tokenizer.decode(latents)
    head = evaluations * _denoising_flops(model, config) / model.num_tokens
    return Flops(transformer, head, counter.get_total_flops())


def _denoising_flops(model: MAR, config: SampleConfig) -> int:
    """Return the FLOPs of one denoising step of all tokens: what a third one adds to two."""
    found: list[int] = []
    z = torch.zeros(model.num_tokens, model.config.widths.decoder_width, device=META)
    size = (model.num_tokens, model.channels)
    assert isinstance(config.head, AnnealedSampler)
    for count in (2, 3):
        noise = Noise(torch.zeros(size, device=META), torch.zeros(count, *size, device=META))
        short: Any = config.head.model_copy(update={"num_steps": count, "final_num_steps": None})
        with flop_counter() as counter:
            model.head.sample(Condition(z, z, 2.0), noise, short)
        found.append(counter.get_total_flops())
    return found[1] - found[0]


def _latent(model: MAR) -> tuple[int, int, int]:
    return model.latent.channels, model.latent.height, model.latent.width


def measure(row: Row, rounds: int) -> tuple[float, int] | None:
    """Return seconds of CPU time for an image, and operations of the batch; None for no rounds."""
    if not rounds:
        return None
    step = new_generation(row.sizes, row.course)
    with Operations() as operations:
        step()  # warms up
    times: list[float] = []
    for _ in range(rounds):
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    return statistics.median(times) / row.sizes.batch, operations.counts.total()


def line(*cells: object) -> str:
    """Return a row of a table."""
    return "| " + " | ".join(map(str, cells)) + " |"


def small_table(sizes: Generation, rounds: int) -> Iterator[str]:
    """Yield the lines of the small model's table; its decoder is KL-16, an eighth as wide."""
    with META:
        tokenizer = build_tokenizer(KL16.model_copy(update={"base_channels": 16}))
    yield line("batch", "tokens", "generation steps", "denoising steps", "CPU ms an image",
               "operations", "GFLOP an image", "transformer / head / decoder, %")  # fmt: skip
    yield line(*["---"] * 8)
    for row in rows(sizes):
        flops, found = count_flops(row, tokenizer), measure(row, rounds)
        total = (flops.transformer + flops.head + flops.decoder) / 1e9
        timed = ("counted", "") if found is None else (f"{1000 * found[0]:.0f}", f"{found[1]:,}")
        steps = "50 to 5" if row.annealed else row.sizes.num_denoising_steps
        yield line(row.sizes.batch, row.sizes.tokens, row.sizes.num_steps, steps, *timed,
                   f"{total:.3g}", flops.shares)  # fmt: skip


def large_table(models: list[str]) -> Iterator[str]:
    """Yield the lines of the table of the paper's models."""
    with META:
        tokenizer = build_tokenizer(KL16)
    yield line("model", "generation steps", "denoising steps", "TFLOP an image",
               "transformer / head / decoder, %")  # fmt: skip
    yield line(*["---"] * 5)
    for name in models:
        for num_steps, steps in ((64, 100), (64, ANNEALED), (256, 100)):
            annealed = isinstance(steps, tuple)
            given = {**asdict(MODELS[name]), "num_steps": num_steps}
            sizes = Generation(**given, num_denoising_steps=100)
            flops = count_flops(Row(sizes, annealed), tokenizer)
            total = (flops.transformer + flops.head + flops.decoder) / 1e12
            course = "50 to 5" if annealed else steps
            yield line(name, num_steps, course, f"{total:.3g}", flops.shares)


def main() -> None:
    """Measure, and print both tables."""
    arguments = parse()
    sizes = replace(SMALL, width=arguments.width)
    for text in small_table(sizes, arguments.rounds):
        print(text, flush=True)
    if arguments.models:
        print()
        for text in large_table(arguments.models):
            print(text, flush=True)


if __name__ == "__main__":
    main()
