"""What a generation costs is counted, and must not grow: FLOPs, operations, waits."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_gpu import OnlyGpuIsFake
from sample_configs import SAMPLERS
from sample_configs import sample_config as tiny_config
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.generation import Generation, flop_counter, new_model, sample_config
from benchmarks.train_step import Operations, Waits
from mar.heads import diffusion_loss
from mar.model.mar import MAR
from mar.sampling.generate import generate
from mar.sampling.noise import SamplingNoise, draw_noise


# The sizes at which the reference implementation needs 1,787 GFLOP without attention, 1,893 with
# it, 50,821 operations and 96 waits.
SIZES = Generation()
MOST_GFLOP = 1585.0
MOST_OPERATIONS = 18_300


def generation_on(device: str, sizes: Generation) -> Tensor:
    config = sample_config(sizes)
    shape = (sizes.batch, sizes.tokens)
    noise = SamplingNoise(
        torch.arange(sizes.tokens).expand(shape).to(device),
        torch.zeros(*shape, sizes.channels, device=device),
        torch.zeros(sizes.num_denoising_steps, *shape, sizes.channels, device=device),
    )
    labels = torch.zeros(sizes.batch, dtype=torch.int64, device=device)
    return generate(new_model(sizes).to(device), labels, noise, config)


def test_a_generation_stays_below_the_committed_flops() -> None:
    """The meta device computes nothing, and each denoising step takes as many as another."""
    found: list[float] = []
    for steps in (2, 3):
        with flop_counter() as counter:
            generation_on("meta", replace(SIZES, num_denoising_steps=steps))
        found.append(counter.get_total_flops() / 1e9)
    two, three = found
    total = two + (SIZES.num_denoising_steps - 2) * (three - two)
    assert 0.98 * MOST_GFLOP < total <= MOST_GFLOP


def test_a_generation_stays_below_the_committed_operations_and_never_waits() -> None:
    """Of sizes, operations depend on the numbers of steps and blocks alone."""
    tiny = replace(SIZES, width=64, denoiser_width=8, batch=2, condition_tokens=4)
    generation_on("cpu", replace(tiny, num_denoising_steps=25, num_steps=1))  # makes the tables
    with Waits() as waits, Operations() as operations:
        generation_on("cpu", tiny)
    assert 0.95 * MOST_OPERATIONS < operations.counts.total() <= MOST_OPERATIONS, operations.counts
    assert waits.counts.total() == 0, +waits.counts


FLOW: dict[str, Any] = {
    "kind": "flow",
    "size": {"blocks": 1, "width": 20},
    "noise_samples_per_token": 2,
    "times": None,
}
# What the model has of its own; kind and keys of section `sample`.
MODES: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "exact": ({}, "diffusion", {}),
    "annealed": ({}, "diffusion", {"head": SAMPLERS["diffusion"] | {"final_num_steps": 2}}),
    "flow": ({"head": FLOW}, "flow", {}),
    "causal": ({"attention": "causal", "mask_ratio": None}, "diffusion", {"num_steps": 12}),
}


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("mode", MODES)
def test_a_generation_keeps_to_its_gpu_and_never_waits_for_it(
    variant: Callable[..., MAR], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU that computes nothing fails where a number of it is needed, and beside a CPU's."""
    changes, kind, keys = MODES[mode]
    model, config = variant(**changes), tiny_config(kind, **keys)
    kept = diffusion_loss._sampling_steps  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(diffusion_loss, kept.__name__, kept.__wrapped__)  # keep none of a fake GPU
    gpu = torch.device("cuda")
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, OnlyGpuIsFake():
        with gpu:
            twin = MAR(model.config, model.latent, model.num_classes).eval()
        noise = draw_noise(twin, range(4), config).to(gpu)
        latents = generate(twin, torch.zeros(4, dtype=torch.int64).to(gpu), noise, config)
        assert latents.device.type == "cuda"
        assert fake.shape_env is None  # no size is a guess


ADAPTER = """
import torch

def make_generate(sizes):
    x = torch.randn(sizes["batch"], sizes["num_denoising_steps"])
    return lambda: (x @ x.T).sum().item()
"""


def test_the_benchmark_runs_tiny_beside_another_implementation(tmp_path: Path) -> None:
    adapter, numbers = tmp_path / "adapter.py", tmp_path / "numbers.json"
    adapter.write_text(ADAPTER)
    sizes = "--width 16 --blocks 1 --heads 2 --denoiser-blocks 1 --denoiser-width 8 --tokens 16"
    steps = "--num-steps 4 --num-denoising-steps 6 --annealed 4 2 --rounds 1 --batch 2"
    command = [sys.executable, "-m", "benchmarks.generation", "--reference", str(adapter)]
    command += [*sizes.split(), *steps.split(), "--json", str(numbers)]
    subprocess.run(command, check=True, capture_output=True)
    found = json.loads(numbers.read_text())
    assert found["ours"]["gflop"] > found["reference"]["gflop"] > 0
    assert found["ours"]["waits"] == 0
    assert found["reference"]["waits"] == 1
    assert found["reference"]["times as long as ours"]["wall"] > 0
