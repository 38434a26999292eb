"""The loss is the mean over hidden tokens, however a batch is cut; a file holds the generator."""

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from torch import Tensor

from mar.heads.diffusion_loss import DiffusionLoss
from mar.latents.posterior import LatentShape
from mar.model import masking
from mar.model.mar import MAR, GeneratorConfig, TrainingDraws, narrow_denoiser_warning
from mar.model.saved import load_mar, save_mar
from mar.tokenizers.kl import AutoencoderConfig
from mar.tokenizers.registry import build_tokenizer, save_tokenizer


LABELS = torch.tensor([0, 3, 1, 4, 4, 2])


def changed(config: GeneratorConfig, **changes: Any) -> GeneratorConfig:
    return GeneratorConfig.model_validate({**config.model_dump(), **changes})


@pytest.fixture
def latents(rng: torch.Generator) -> Tensor:
    return torch.randn(6, 2, 8, 6, generator=rng)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_tokens_come_back_as_latents(tiny_model: MAR, latents: Tensor, patch_size: int) -> None:
    config = changed(tiny_model.config, patch_size=patch_size)
    model = MAR(config, tiny_model.latent, 5)
    tokens = model.patchify(latents)
    assert tokens.shape == (6, 48 // patch_size**2, 2 * patch_size**2)
    assert torch.equal(model.unpatchify(tokens), latents)


def test_tokens_run_row_by_row_with_channels_before_pixels(tiny_model: MAR) -> None:
    latents = torch.arange(2 * 8 * 6).reshape(1, 2, 8, 6).float()
    tokens = tiny_model.patchify(latents)
    assert torch.equal(tokens[0, 4].reshape(2, 2, 2), latents[0, :, 2:4, 2:4])  # row 1, column 1


# Draws


def test_as_many_tokens_are_hidden_as_the_ratio_says(tiny_model: MAR) -> None:
    for seed in range(30):
        same = torch.Generator().manual_seed(seed)
        ratio = masking.sample_mask_ratio(same, minimum=0.7, std=0.25)
        draws = tiny_model.draw(3, torch.Generator().manual_seed(seed))
        assert draws.num_hidden == math.ceil(ratio * 12)
        t, eps = draws.head
        assert t.shape == (3, draws.num_hidden, 2)
        assert eps.shape == (3, draws.num_hidden, 2, 8)


def test_classes_are_dropped_at_their_share(tiny_model: MAR, rng: torch.Generator) -> None:
    dropped = tiny_model.draw(5000, rng).dropped
    assert stats.binomtest(int(dropped.sum()), 5000, 0.1).pvalue > 1e-5
    never = MAR(changed(tiny_model.config, label_drop=0.0), tiny_model.latent, 5)
    assert not never.draw(500, rng).dropped.any()


def test_draws_depend_on_the_generator_alone(tiny_model: MAR) -> None:
    first, second, other = (
        tiny_model.draw(4, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first.orders, second.orders)
    assert torch.equal(first.dropped, second.dropped)
    assert all(torch.equal(a, b) for a, b in zip(first.head, second.head, strict=True))
    assert not torch.equal(first.orders, other.orders)


# Loss


def test_the_loss_of_hidden_tokens_is_the_masked_loss_of_all(
    tiny_model: MAR, latents: Tensor, rng: torch.Generator
) -> None:
    """The original computes every token's loss and averages those of the hidden."""
    draws = tiny_model.draw(6, rng)
    hidden, visible = masking.split_orders(draws.orders, draws.num_hidden)
    tokens = tiny_model.patchify(latents)
    condition = tiny_model.transformer.condition(LABELS, draws.dropped)
    z = tiny_model.transformer(tokens, visible, condition)
    rows = torch.arange(6)[:, None].expand_as(hidden)
    hidden_t, hidden_eps = draws.head
    t = torch.zeros(6, 12, 2, dtype=torch.int64).index_put((rows, hidden), hidden_t)
    eps = torch.zeros(6, 12, 2, 8).index_put((rows, hidden), hidden_eps)
    losses = tiny_model.head(z, tokens, (t, eps))  # (B, N, A)
    mask = torch.zeros(6, 12).index_put((rows, hidden), torch.tensor(1.0))
    expected = (losses.mean(dim=2) * mask).sum() / mask.sum()
    assert torch.allclose(tiny_model(latents, LABELS, draws), expected, rtol=1e-5)


def test_visible_tokens_have_no_loss(
    tiny_model: MAR, latents: Tensor, rng: torch.Generator
) -> None:
    """Where nothing depends on the visible tokens as a condition, their values do not count."""
    drawn, head = tiny_model.draw(6, rng), tiny_model.head.draw(6, 9, rng)
    draws = replace(drawn, num_hidden=9, head=head)  # of 12: some are visible
    hidden, visible = masking.split_orders(draws.orders, draws.num_hidden)
    assert isinstance(tiny_model.head, DiffusionLoss)
    with torch.no_grad():
        tiny_model.head.denoiser.z_proj.weight.zero_()
    tokens = tiny_model.patchify(latents)
    index = visible[:, :, None].expand(-1, -1, 8)
    other = tiny_model.unpatchify(tokens.scatter(1, index, 9.0))
    loss = tiny_model(latents, LABELS, draws)
    assert torch.equal(tiny_model(other, LABELS, draws), loss)
    index = hidden[:, :, None].expand(-1, -1, 8)
    other = tiny_model.unpatchify(tokens.scatter(1, index, 9.0))
    assert not torch.equal(tiny_model(other, LABELS, draws), loss)


def loss_and_gradients(
    model: MAR, parts: Iterable[tuple[Tensor, Tensor, TrainingDraws]]
) -> dict[str, Tensor]:
    model.zero_grad()
    total = torch.zeros(())
    for latents, labels, draws in parts:
        loss = model(latents, labels, draws) * len(latents) / 6
        loss.backward()
        total += loss.detach()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": total, **gradients}


@pytest.mark.parametrize("micro_batch", [1, 3, 4])
def test_the_loss_of_a_batch_is_the_mean_over_its_parts(
    tiny_model: MAR, latents: Tensor, rng: torch.Generator, micro_batch: int
) -> None:
    dropped = torch.arange(6) % 2 == 0
    draws = replace(tiny_model.draw(6, rng), dropped=dropped)
    whole = loss_and_gradients(tiny_model, [(latents, LABELS, draws)])
    cuts = [slice(start, start + micro_batch) for start in range(0, 6, micro_batch)]
    parts = loss_and_gradients(tiny_model, ((latents[c], LABELS[c], draws[c]) for c in cuts))
    assert whole.keys() == parts.keys()
    assert len(whole) == 1 + len(list(tiny_model.parameters()))
    for name, value in whole.items():
        assert torch.allclose(parts[name], value, rtol=1e-3, atol=1e-5), name


def test_taken_positions_are_those_asked_for(rng: torch.Generator) -> None:
    x = torch.randn(2, 5, 3, generator=rng)
    taken = masking.gather_tokens(x, torch.tensor([[4, 0], [1, 1]]))
    assert torch.equal(taken, torch.stack([x[0, [4, 0]], x[1, [1, 1]]]))


# Sizes


@pytest.mark.parametrize("patch_size", [3, 4])
def test_latents_that_do_not_divide_into_patches_are_refused(
    tiny_model: MAR, patch_size: int
) -> None:
    config = changed(tiny_model.config, patch_size=patch_size)
    with pytest.raises(ValueError, match=r"generator\.patch_size: 8 x 6 latents do not divide"):
        MAR(config, tiny_model.latent, 5)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_widths_that_do_not_divide_into_heads_are_refused(tiny_model: MAR, part: str) -> None:
    size = {**tiny_model.config.model_dump()["size"], f"{part}_heads": 7}
    config = changed(tiny_model.config, size=size)
    with pytest.raises(ValueError, match=rf"generator\.size\.{part}_width: \d+ does not divide"):
        MAR(config, tiny_model.latent, 5)


def test_unknown_sizes_are_refused(tiny_model: MAR) -> None:
    with pytest.raises(ValidationError, match="'base', 'large' or 'huge'"):
        changed(tiny_model.config, size="medium")
    with pytest.raises(ValidationError, match="decoder_width"):
        changed(tiny_model.config, size={"encoder_width": 16})


def test_initial_weights_depend_on_the_generator_alone(tiny_model: MAR) -> None:
    states: list[dict[str, Tensor]] = []
    for seed in (0, 0, 1):
        torch.rand(3)
        tiny_model.initialize(torch.Generator().manual_seed(seed))
        states.append({name: value.clone() for name, value in tiny_model.state_dict().items()})
    first, second, other = states
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["transformer.mask_token"], other["transformer.mask_token"])


@pytest.mark.parametrize(
    ("patch_size", "width", "warned"), [(2, 20, False), (4, 1023, True), (4, 1024, False)]
)
def test_a_denoiser_that_is_small_for_wide_tokens_is_warned_about(
    tiny_model: MAR, patch_size: int, width: int, warned: bool
) -> None:
    """Of 2 channels each, 4 latents make a token of 8 channels, and 16 one of 32."""
    size = {"blocks": 1, "width": width}
    head = {"kind": "diffusion", "size": size, "noise_samples_per_token": 1}
    config = changed(tiny_model.config, patch_size=patch_size, head=head)
    with torch.device("meta"):
        model = MAR(config, LatentShape(2, 8, 8), 5)
    warning = narrow_denoiser_warning(config, model.latent)
    assert (warning is not None) == warned
    assert not warned or "generator.head.size: a denoiser of width 1023 is narrow" in str(warning)


# Files


def test_a_saved_generator_comes_back(tiny_model: MAR, latents: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "generator.safetensors"
    save_mar(path, tiny_model.train(), "digest")
    loaded = load_mar(path, "digest")
    assert loaded.config == tiny_model.config
    assert (loaded.latent, loaded.num_classes) == (tiny_model.latent, 5)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    draws = tiny_model.eval().draw(6, torch.Generator().manual_seed(3))
    assert torch.equal(loaded(latents, LABELS, draws), tiny_model(latents, LABELS, draws))


def test_a_generator_of_another_tokenizer_is_refused(tiny_model: MAR, tmp_path: Path) -> None:
    path = tmp_path / "generator.safetensors"
    save_mar(path, tiny_model, "a" * 64)
    with pytest.raises(ValueError, match=r"of tokenizer aaaaaaaaaaaa, got tokenizer bbbbbbbbbbbb"):
        load_mar(path, "b" * 64)


def test_a_tokenizer_is_not_taken_for_a_generator(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.safetensors"
    config = AutoencoderConfig(
        kind="kl",
        latent_channels=2,
        base_channels=4,
        channel_multipliers=[1],
        num_res_blocks=1,
        encoder_attention=False,
        kl_weight=1e-6,
    )
    save_tokenizer(path, build_tokenizer(config))
    with pytest.raises(ValueError, match=r"tokenizer\.safetensors does not hold a generator"):
        load_mar(path, "a" * 64)


def test_a_damaged_generator_is_named(tiny_model: MAR, tmp_path: Path) -> None:
    path = tmp_path / "generator.safetensors"
    save_mar(path, tiny_model, "digest")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"generator\.safetensors is damaged"):
        load_mar(path, "digest")
