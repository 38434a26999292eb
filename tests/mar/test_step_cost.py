"""What a training step costs is counted, and must not grow: FLOPs, operations, waits, graphs."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_gpu import GpuRng, OnlyGpuIsFake
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.train_step import Operations, Waits
from benchmarks.training_step import Sizes, build, load_adapter, new_step
from mar.activation_checkpointing import set_checkpointing
from mar.model.flops import mean_hidden, step_flops
from mar.model.mar import MAR, MaskRatio
from mar.model.masking import sample_mask_ratio


# The sizes at which the reference implementation needs 319 GFLOP, and 983 operations for the
# forward and backward pass (another 1,700 in the optimiser and the EMA). A convolution is one
# operation forward and one backward; with matrix products, also on a CPU, it is 717 in all.
SIZES = Sizes()
MOST_GFLOP = 263.0
MOST_OF_THE_MODEL = 600
MOST_OPERATIONS = 640


def test_a_step_stays_below_the_committed_flops_and_operations() -> None:
    step, trainer = new_step(SIZES)
    step()  # the optimiser's state is made
    with FlopCounterMode(display=False) as flops:
        step()
    assert 0 < flops.get_total_flops() / 1e9 <= MOST_GFLOP
    with Operations() as operations:
        step()
    assert 0 < operations.counts.total() <= MOST_OPERATIONS, operations.counts
    model, rng, hidden = trainer.model, torch.Generator().manual_seed(0), SIZES.num_hidden
    assert hidden is not None
    draws = model.draw(SIZES.batch, rng)
    draws = replace(draws, num_hidden=hidden, head=model.head.draw(SIZES.batch, hidden, rng))
    latents = torch.zeros(SIZES.batch, *(model.latent.channels, 16, 16))
    labels = torch.zeros(SIZES.batch, dtype=torch.int64)
    model.zero_grad()
    with Operations() as operations:
        model(latents, labels, draws).backward()
    assert 0 < operations.counts.total() <= MOST_OF_THE_MODEL, operations.counts


def test_the_flops_of_a_step_are_those_of_its_layers() -> None:
    hidden = 200
    width, tokens, batch = SIZES.width, SIZES.tokens, SIZES.batch
    encoded = SIZES.condition_tokens + tokens - hidden
    decoded = SIZES.condition_tokens + tokens

    def block(places: int, outputs: int) -> int:
        """Queries, projection and MLP for the outputs, keys and values for all, attention."""
        return 2 * width**2 * (10 * outputs + 2 * places) + 4 * width * places * outputs

    transformer = 4 * block(encoded, encoded) + 3 * block(decoded, decoded) + block(decoded, hidden)
    transformer += 2 * encoded * width**2  # from the encoder to the decoder
    inner, channels = SIZES.denoiser_width, SIZES.channels
    rows = hidden * SIZES.draws
    denoiser = 2 * rows * (3 * 5 * inner**2 + 2 * inner**2 + inner * 2 * channels)
    embedded = 2 * hidden * width * inner
    time = 2 * 1000 * inner**2
    # Of what enters a network, no gradient is computed.
    entries = 2 * (tokens - hidden) * channels * width + 2 * rows * channels * inner
    time_entry = 2 * 1000 * 256 * inner
    total = 3 * (batch * (transformer + denoiser + embedded) + time)
    total += 2 * (batch * entries + time_entry)
    assert step_flops(build(SIZES), batch, hidden) == total


def test_the_mean_number_of_hidden_tokens_is_that_of_the_draws(rng: torch.Generator) -> None:
    for minimum, std in ((0.7, 0.25), (0.1, 1.0)):
        drawn = [
            math.ceil(64 * sample_mask_ratio(rng, minimum=minimum, std=std)) for _ in range(4000)
        ]
        expected = mean_hidden(MaskRatio(min=minimum, std=std), 64)
        deviation = torch.tensor(drawn).double().std() / math.sqrt(len(drawn))
        assert abs(sum(drawn) / len(drawn) - expected) < 5 * deviation
    assert mean_hidden(None, 64) == mean_hidden(MaskRatio(min=1.0, std=0.25), 64) == 64


# Waits


HEADS: dict[str, dict[str, Any]] = {
    "diffusion": {},
    "flow": {
        "kind": "flow",
        "size": {"blocks": 1, "width": 20},
        "noise_samples_per_token": 2,
        "times": {"mean": 0.0, "std": 1.0},
    },
    "meanflow": {
        "kind": "meanflow",
        "size": {"blocks": 1, "width": 20},
        "noise_samples_per_token": 2,
        "times": None,
    },
    "energy": {
        "kind": "energy",
        "size": {"blocks": 1, "width": 20},
        "noise_samples_per_token": 2,
        "alpha": 1.0,
    },
    "l2": {"kind": "l2"},
    "cross_entropy": {"kind": "cross_entropy"},
}


def model_and_latents(
    make: Callable[..., MAR], head: str, *, causal: bool
) -> tuple[MAR, Callable[[], Tensor]]:
    changes: dict[str, Any] = {"head": HEADS[head]} if HEADS[head] else {}
    if causal:
        changes |= {"attention": "causal", "mask_ratio": None}
    if head == "cross_entropy":
        model = make(codebook_size=30, patch_size=1, **changes)
        return model, lambda: torch.zeros(4, 1, 8, 6, dtype=torch.int64)
    return make(**changes), lambda: torch.randn(4, 2, 8, 6)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_draws_and_forward_pass_never_wait_for_a_gpu(
    variant: Callable[..., MAR], head: str, causal: bool
) -> None:
    """A GPU that computes nothing fails where a number of it is needed."""
    model, make_latents = model_and_latents(variant, head, causal=causal)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, OnlyGpuIsFake():
        with torch.device("cuda"):
            twin = MAR(model.config, model.latent, model.num_classes, model.codebook_size)
            latents, labels = make_latents(), torch.zeros(4, dtype=torch.int64)
        draws = twin.draw(4, GpuRng())
        loss = twin.train()(latents, labels, draws)
        assert loss.device.type == "cuda"
        assert fake.shape_env is None  # no size is a guess


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_forward_and_backward_pass_hold_no_operation_that_waits(
    variant: Callable[..., MAR], head: str, causal: bool, checkpointing: bool
) -> None:
    model, make_latents = model_and_latents(variant, head, causal=causal)
    set_checkpointing(model, checkpointing)
    draws = model.draw(4, torch.Generator().manual_seed(0))
    with Waits() as waits:
        model.train()(make_latents(), torch.zeros(4, dtype=torch.int64), draws).backward()
    assert waits.counts
    assert waits.counts.total() == 0, +waits.counts


def test_optimiser_and_average_hold_no_operation_that_waits() -> None:
    tiny = replace(SIZES, width=16, blocks=1, heads=2, denoiser_blocks=1, denoiser_width=16)
    step, _ = new_step(replace(tiny, tokens=16, condition_tokens=2, batch=2))
    step()
    with Waits() as waits:
        step()
    assert waits.counts["aten._fused_adamw_.default"] == 0  # seen, and no wait
    # The mask ratio alone, which is drawn on the CPU, is read.
    read = {name: count for name, count in waits.counts.items() if count}
    assert set(read) <= {"aten._local_scalar_dense.default", "aten._is_all_true.default"}, read
    assert sum(read.values()) <= 8


# Graphs


@pytest.mark.parametrize("options", [["--checkpointing"], ["--dropout"]])
def test_one_set_of_graphs_serves_all_mask_ratios(options: list[str]) -> None:
    """In a process of its own: the checks of shapes that the tests add cannot be compiled."""
    command = [sys.executable, "-m", "benchmarks.compiled_graphs", "--backend", "aot_eager"]
    output = subprocess.run([*command, *options], check=True, capture_output=True, text=True)
    found = json.loads(output.stdout)
    assert 0 < found["graphs"][0] == found["graphs"][-1] <= 7
    assert found["names kept"]
    if "--dropout" not in options:
        assert found["largest difference"] < 1e-5


# Benchmarks


ADAPTER = """
import torch

def make_step(sizes):
    x = torch.randn(sizes["batch"], sizes["width"])
    return lambda: (x @ x.T).sum().item()
"""


def test_the_gpu_benchmark_runs_tiny_on_the_cpu_beside_another_implementation(
    tmp_path: Path,
) -> None:
    adapter, numbers = tmp_path / "adapter.py", tmp_path / "numbers.json"
    adapter.write_text(ADAPTER)
    command = [sys.executable, "-m", "benchmarks.gpu", "--smoke", "--reference", str(adapter)]
    subprocess.run([*command, "--json", str(numbers)], check=True, capture_output=True)
    found = json.loads(numbers.read_text())["tiny"]
    assert found["gflop"] > 0
    assert found["ours"]["images/s"] == pytest.approx(2 / found["ours"]["seconds"])
    assert found["reference"]["seconds"] > 0


def test_an_adapter_without_a_step_is_refused(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter.py"
    with pytest.raises(ValueError, match="must be a Python file, got "):
        load_adapter(adapter)
    adapter.write_text("x = 1")
    with pytest.raises(ValueError, match="must define make_step"):
        load_adapter(adapter)
