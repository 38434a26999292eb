"""The memory of a generation is counted as it is: no less than it takes, and not much more."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sample_configs import SAMPLERS, sample_config

from mar.model.mar import MAR
from mar.sampling.generate import generate
from mar.sampling.memory import Memory, PeakMemory, count_memory, without_numbers
from mar.sampling.noise import SamplingNoise, draw_noise
from mar.tokenizers.codec import decode_tokens
from mar.tokenizers.kl import AutoencoderConfig
from mar.tokenizers.registry import build_tokenizer


TOKENIZER = AutoencoderConfig(
    kind="kl",
    latent_channels=2,
    base_channels=8,
    channel_multipliers=[1, 2],
    num_res_blocks=1,
    encoder_attention=False,
    kl_weight=1e-6,
)
FLOW = {
    "kind": "flow",
    "size": {"blocks": 1, "width": 20},
    "noise_samples_per_token": 2,
    "times": None,
}
ENERGY = {
    "kind": "energy",
    "size": {"blocks": 1, "width": 20},
    "noise_samples_per_token": 2,
    "alpha": 1.0,
}
MODES: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "diffusion": ({}, "diffusion", {"num_steps": 3}),
    "annealed": ({}, "diffusion", {"head": SAMPLERS["diffusion"] | {"final_num_steps": 2}}),
    "unguided, in one step": ({}, "diffusion", {"guidance_scale": 1.0, "num_steps": 1}),
    "flow": ({"head": FLOW}, "flow", {}),
    "energy": ({"head": ENERGY}, "energy", {}),
    "in halves": ({}, "diffusion", {"reconstruction_steps": 2}),
    "causal": ({"attention": "causal", "mask_ratio": None}, "diffusion", {"num_steps": 12}),
}


def test_the_peak_is_that_of_tensors_held_at_a_time() -> None:
    given = torch.zeros(1000)
    with PeakMemory() as memory:
        first = torch.zeros(100)  # 400 bytes
        _ = given.view(10, 100)
        second = first + 1  # 800 together
        del first
        second += given[:100]
        third = torch.cat([second, second])  # 1200, as the first is gone
        del second, third
        torch.zeros(150)
    assert memory.most == 1200


def test_most_images_are_the_largest_batch_that_fits() -> None:
    memory = Memory(shared=7, generated=5, decoded=11)

    def takes(batch: int) -> int:
        return 7 + 5 * batch + 11 * min(batch, 4)

    for free in range(23, 200):
        most = memory.most_images(free, 4)
        assert takes(most) <= free < takes(most + 1)


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_takes_what_was_counted(variant: Callable[..., MAR], mode: str) -> None:
    changes, kind, keys = MODES[mode]
    model, config = variant(**changes).requires_grad_(False).eval(), sample_config(kind, **keys)
    tokenizer = build_tokenizer(TOKENIZER).eval()
    counted = count_memory(model, tokenizer, config)
    drawn = draw_noise(model, range(6), config)  # by the host, which a device's memory is not
    with PeakMemory() as memory:
        noise = SamplingNoise(drawn.orders.clone(), drawn.initial.clone(), drawn.steps.clone())
        latents = generate(model, torch.arange(6) % 5, noise, config)
    assert 0.8 < memory.most / (counted.shared + 6 * counted.generated) < 1.1
    with torch.no_grad(), PeakMemory() as decoding:
        decode_tokens(tokenizer, latents, 1.0)
    assert decoding.most == pytest.approx(6 * counted.decoded, rel=0.05)


def test_a_copy_without_numbers_leaves_the_model(tiny_model: MAR) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    twin = without_numbers(tiny_model)
    assert all(tensor.is_meta for tensor in [*twin.parameters(), *twin.buffers()])
    assert all(tensor.device.type == "cpu" for tensor in tiny_model.parameters())
    after = tiny_model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
