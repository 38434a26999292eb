"""The published model's numbers come out of our equations, within 1e-4 relative L2.

The folder is `MAR_GOLDEN` (default `tests/golden`); any folder of that layout will do, its README
tells what is in it. Weights come from files of the official layout, by way of the importer that the
stages use.
"""

import json
import math
import os
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mar.heads import diffusion
from mar.heads.base import Condition, Noise
from mar.heads.denoiser import DenoiserSize
from mar.heads.diffusion_loss import DiffusionConfig, DiffusionLoss, DiffusionSampler
from mar.latents.posterior import LatentShape, Posterior
from mar.model.mar import MAR, MaskRatio, TrainingDraws
from mar.model.masking import gather_tokens, num_hidden_after, split_orders
from mar.model.transformer import Transformer, Widths
from mar.released import reader
from mar.released.generator import ReleasedGenerator
from mar.released.names import from_released
from mar.released.pickles import write_generator, write_tokenizer
from mar.released.tokenizer import ReleasedAutoencoder, to_ours
from mar.sampling.config import SampleConfig
from mar.sampling.generate import generate, guidance_at
from mar.sampling.noise import SamplingNoise
from mar.tokenizers.kl import AutoencoderKL


GOLDEN = Path(os.environ.get("MAR_GOLDEN") or Path(__file__).parents[1] / "golden")
CASES: dict[str, Any] = json.loads((GOLDEN / "cases.json").read_text())
GENERATORS = [name for name in CASES if name.startswith("mar_")]
AUTOENCODERS = [name for name in CASES if name.startswith("vae_")]
SAMPLERS = [name for name in CASES if name.startswith("sample_")]


def arrays(name: str) -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    assert actual.shape == expected.shape
    distance = (actual.double() - expected.double()).norm() / expected.double().norm()
    assert distance <= tolerance, f"relative L2 error {distance:.2e}"


@pytest.mark.parametrize("name", ["train", "s100", "s50", "s25", "s10", "s5"])
def test_schedule(name: str) -> None:
    golden = arrays("schedules")
    steps = len(golden[f"{name}/betas"])
    schedule = diffusion.training_schedule()
    if name != "train":
        schedule = diffusion.sampling_schedule(steps)
    assert torch.equal(schedule.timesteps, golden[f"{name}/timestep_map"])
    for ours, theirs in [
        ("beta", "betas"),
        ("alpha_bar", "alphas_cumprod"),
        ("posterior_variance", "posterior_variance"),
        ("posterior_log_variance", "posterior_log_variance_clipped"),
        ("posterior_x_0", "posterior_mean_coef1"),
        ("posterior_x_t", "posterior_mean_coef2"),
    ]:
        assert_close(getattr(schedule, ours), golden[f"{name}/{theirs}"], 1e-6)


def denoiser_head() -> DiffusionLoss:
    weights = load_file(GOLDEN / "diffloss_weights.safetensors")
    prefix = "" if any(name.startswith("diffloss.") for name in weights) else "diffloss."
    if prefix and not any(name.startswith("net.") for name in weights):
        prefix = "diffloss.net."
    ours = from_released({prefix + name: value for name, value in weights.items()})
    tensors = {name.removeprefix("head."): value.float() for name, value in ours.items()}
    width, channels = tensors["denoiser.input_proj.weight"].shape
    num_blocks = len({name.split(".")[2] for name in tensors if ".blocks." in name})
    size = DenoiserSize(blocks=num_blocks, width=width)
    head = DiffusionLoss(
        DiffusionConfig(kind="diffusion", size=size, noise_samples_per_token=1),
        channels=channels,
        z_width=tensors["denoiser.z_proj.weight"].shape[1],
    )
    head.load_state_dict(tensors)
    return head.eval()


def test_denoiser() -> None:
    golden, head = arrays("diffloss"), denoiser_head()
    with torch.no_grad():
        assert_close(head.denoiser.embed_time(golden["t"]), golden["time_embed"])
        assert_close(head.denoiser(golden["x0"], golden["t"], golden["z"]), golden["net_out"])


def test_diffusion_loss() -> None:
    golden, head = arrays("diffloss"), denoiser_head()
    x_0, t, eps = golden["x0"], golden["t"], golden["noise"]
    x_t = diffusion.add_noise(head.schedule, x_0, t, eps)
    assert_close(x_t, golden["x_t"])
    with torch.no_grad():
        output = head.denoiser(x_t, t, golden["z"])
        terms = diffusion.loss(head.schedule, output, x_0, x_t, t, eps)
        draws = (t[None, :, None], eps[None, :, None])
        rows = head(golden["z"][None], x_0[None], draws).flatten()
    assert_close(terms.noise, golden["mse"])
    assert_close(terms.variational, golden["vb"])
    assert_close(rows, golden["loss"])


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler(name: str) -> None:
    golden, head, case = arrays("diffloss"), denoiser_head(), CASES[name]
    count, guided = case["n"], case["cfg"] != 1
    tokens = head.sample(
        Condition(
            golden["z"][:count], golden["z"][count : 2 * count] if guided else None, case["cfg"]
        ),
        Noise(golden[f"{name}/init"], golden[f"{name}/step_noise"]),
        sampler(int(case["num_sampling_steps"]), case["temperature"]),
    )
    assert_close(tokens, golden[f"{name}/out"])


def sampler(num_steps: int, temperature: float) -> DiffusionSampler:
    return DiffusionSampler(
        kind="diffusion",
        num_steps=num_steps,
        final_num_steps=None,
        annealing="linear",
        solver="ancestral",
        temperature=temperature,
        x_0_bound=None,
        precision="float32",
    )


def published(case: dict[str, Any]) -> MAR:
    official = case["config"]
    size = Widths(
        encoder_width=official["encoder_embed_dim"],
        encoder_blocks=official["encoder_depth"],
        encoder_heads=official["encoder_num_heads"],
        decoder_width=official["decoder_embed_dim"],
        decoder_blocks=official["decoder_depth"],
        decoder_heads=official["decoder_num_heads"],
    )
    denoiser = DenoiserSize(blocks=official["diffloss_d"], width=official["diffloss_w"])
    section = ReleasedGenerator(
        source="released",
        path="checkpoint-last.pth",
        sha256=None,
        weights="model_ema",
        classes="released",
        size=size,
        attention="bidirectional",
        order="random",
        patch_size=official["patch_size"],
        condition_tokens=official["buffer_size"],
        dropout=0.1,
        label_drop=0.1,
        mask_ratio=MaskRatio(min=0.7, std=0.25),
        head=DiffusionConfig(
            kind="diffusion", size=denoiser, noise_samples_per_token=official["diffusion_batch_mul"]
        ),
    )
    side = official["img_size"] // official["vae_stride"]
    model = MAR(section, LatentShape(official["vae_embed_dim"], side, side), official["class_num"])
    tensors = load_file(GOLDEN / f"{case['weights']}.safetensors")
    others = {name: torch.zeros_like(value) for name, value in tensors.items()}
    with TemporaryDirectory() as folder:
        write_generator(Path(folder, section.path), others, tensors)
        found = reader.read_generator(section, model, base=Path(folder))
        model.load_state_dict(section.to_ours(found.chosen))
    return model.eval()


@pytest.mark.parametrize("name", GENERATORS)
def test_transformer(name: str) -> None:
    golden, model = arrays(name), published(CASES[name])
    transformer = model.transformer
    assert isinstance(transformer, Transformer)
    assert torch.equal(model.patchify(golden["latents"]), golden["tokens"])
    assert torch.equal(model.unpatchify(golden["tokens"]), golden["latents"])
    _, visible = split_orders(golden["orders"], int(golden["mask"][0].sum()))
    never = torch.zeros(len(golden["labels"]), dtype=torch.bool)
    with torch.no_grad():
        condition = transformer.condition(golden["labels"], never)
        encoded = transformer.encode(golden["tokens"], visible, condition)
        assert_close(encoded, golden["encoder_out"])
        assert_close(transformer.decode(encoded, visible), golden["decoder_out"])
        null = transformer.condition(golden["labels"], ~never)
        z = transformer(golden["tokens"], visible, null)
        assert_close(z, golden["decoder_out_uncond"])


@pytest.mark.parametrize("name", GENERATORS)
def test_masked_loss(name: str) -> None:
    """The reference averages the hidden rows of all; we compute the hidden ones alone."""
    golden, model = arrays(name), published(CASES[name])
    batch, num_tokens = golden["mask"].shape
    hidden_count = int(golden["mask"][0].sum())
    assert hidden_count == math.ceil(CASES[name]["mask_ratio"] * num_tokens)
    hidden, _ = split_orders(golden["orders"], hidden_count)
    assert torch.equal(hidden, golden["mask"].nonzero()[:, 1].reshape(batch, -1))

    def rows_of_hidden(rows: torch.Tensor) -> torch.Tensor:
        """From (draws * B * N, ...) to (B, M, draws, ...)."""
        rows = rows.reshape(-1, batch, num_tokens, *rows.shape[1:]).movedim(0, 2)
        return torch.stack([row[index] for row, index in zip(rows, hidden, strict=True)])

    draws = (rows_of_hidden(golden["t"]), rows_of_hidden(golden["noise"]))
    never = torch.zeros(batch, dtype=torch.bool)
    with torch.no_grad():
        rows = model.head(
            gather_tokens(golden["decoder_out"], hidden),
            gather_tokens(golden["tokens"], hidden),
            draws,
        )
        assert_close(rows, rows_of_hidden(golden["loss_rows"]))
        whole = TrainingDraws(golden["orders"], hidden_count, never, draws)
        assert_close(model(golden["latents"], golden["labels"], whole), golden["loss"])


@pytest.mark.parametrize("name", GENERATORS)
def test_whole_generation(name: str) -> None:
    golden, case = arrays(name), CASES[name]
    model = published(case)
    config = SampleConfig(
        seed=0,
        num_images=len(golden["labels"]),
        weights="ema",
        labels=None,
        prompts=None,
        num_steps=case["num_iter"],
        order="random",
        guidance_scale=float(case["cfg"]),
        guidance_schedule=case["cfg_schedule"],
        reconstruction_steps=None,
        head=sampler(int(case["config"]["num_sampling_steps"]), float(case["temperature"])),
        shard_images=1,
    )
    generated = generate(model, golden["labels"], noise_by_position(golden, case), config)
    assert_close(generated, golden["generated"])


@pytest.mark.parametrize("name", GENERATORS)
def test_generation_schedule(name: str) -> None:
    golden, case = arrays(name), CASES[name]
    num_tokens = golden["orders"].shape[1]
    left = num_hidden_after(num_tokens, case["num_iter"])
    before = [num_tokens, *left[:-1]]
    counts = [hidden - after for hidden, after in zip(before, left, strict=True)]
    assert counts == golden["n_tokens_per_iter"].tolist()
    if case["cfg"] != 1:
        config = SampleConfig.model_construct(
            guidance_scale=case["cfg"], guidance_schedule=case["cfg_schedule"]
        )
        scales = [guidance_at(config, num_tokens - max(count, 1), num_tokens) for count in left]
        np.testing.assert_allclose(scales, golden["cfg_per_iter"].numpy(), rtol=1e-6)


def noise_by_position(golden: dict[str, torch.Tensor], case: dict[str, Any]) -> SamplingNoise:
    """Sort the golden noise, which is in the order drawn, by sample and position."""
    orders = golden["orders"]
    batch, num_tokens = orders.shape
    initial = torch.empty(batch, num_tokens, golden["init_noise"].shape[1])
    steps = torch.empty(len(golden["step_noise"]), *initial.shape)
    row, hidden = 0, num_tokens
    for left in num_hidden_after(num_tokens, case["num_iter"]):
        for sample in range(batch):
            for position in orders[sample, left:hidden].sort().values:
                initial[sample, position] = golden["init_noise"][row]
                steps[:, sample, position] = golden["step_noise"][:, row]
                row += 1
        hidden = left
    return SamplingNoise(orders, initial, steps)


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_autoencoder(name: str) -> None:
    golden, case = arrays(name), CASES[name]
    section = ReleasedAutoencoder(
        kind="kl",
        source="released",
        path="kl16.ckpt",
        sha256=None,
        latent_channels=case["z_channels"],
        base_channels=case["ch"],
        channel_multipliers=case["ch_mult"],
        num_res_blocks=case["num_res_blocks"],
        encoder_attention=True,  # the released KL-16 has it, whatever the case says
        kl_weight=1e-6,
    )
    model = AutoencoderKL(section)
    with TemporaryDirectory() as folder:
        tensors = {n: by_rule(n, t.shape) for n, t in model.state_dict().items()}
        write_tokenizer(Path(folder, section.path), tensors)
        found = reader.read_tokenizer(section, model, base=Path(folder))
        model.load_state_dict(to_ours(section, found.tensors, model))
    with torch.no_grad():
        moments = model.encode(golden["image"])
        posterior = Posterior.of(golden["moments"], section.latent_channels)
        latents = posterior.sample(golden["eps"])
        image = model.decode(golden["z"])
    assert_close(moments, golden["moments"])
    assert_close(latents, golden["z"])
    assert_close(posterior.kl(), golden["kl"])
    assert_close(image, golden["recon"])


def by_rule(name: str, shape: torch.Size) -> torch.Tensor:
    """Make a weight from its name; the rule is that of the golden folder's README."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    values = random.standard_normal(tuple(shape)).astype(np.float32)
    if name.endswith(".weight") and len(shape) >= 2:
        values = values / np.float32(math.sqrt(math.prod(shape[1:])))
    elif name.endswith(".weight"):
        values = 1 + np.float32(0.1) * values
    else:
        values = np.float32(0.1) * values
    return torch.from_numpy(values.astype(np.float32))
