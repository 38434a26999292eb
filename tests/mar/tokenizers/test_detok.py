"""l-DeTok corrupts latents by its formula, in training alone, and then tunes its decoder alone."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mar.latents.posterior import Posterior
from mar.tokenizers.detok import (
    SIZES,
    DeTok,
    DeTokConfig,
    Stack,
    StackSize,
    corrupt,
    rotary_embedding,
)
from mar.tokenizers.interface import Draws


def new_config(**changes: Any) -> DeTokConfig:
    fields: dict[str, Any] = {
        "kind": "detok",
        "latent_channels": 3,
        "patch_size": 2,
        "grid": 4,
        "encoder": {"width": 16, "blocks": 2, "heads": 2},
        "decoder": {"width": 24, "blocks": 2, "heads": 3},
        "noise_std": 3.0,
        "drop_ratio_max": 0.7,
        "kl_weight": 0.01,
        "decoder_from_step": 5,
        **changes,
    }
    return DeTokConfig.model_validate(fields)


def new_detok(seed: int = 0, **changes: Any) -> DeTok:
    """Return a model with larger weights than initial ones, behind which a fault could hide."""
    model = DeTok(new_config(**changes))
    rng = torch.Generator().manual_seed(seed)
    model.initialize(rng)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=0.1)
    return model


@pytest.fixture
def images(rng: torch.Generator) -> Tensor:
    return torch.rand(2, 3, 8, 8, generator=rng) * 2 - 1


def draw(model: DeTok, seed: int = 0, *, step: int = 0, batch: int = 2) -> Draws:
    return model.draw(batch, (4, 4), torch.Generator().manual_seed(seed), step=step)


def kept_of(model: DeTok, share: float) -> Draws:
    """Return the draws of the first seed that keeps about a share of the patches."""
    drawn = (draw(model, seed) for seed in range(100))
    return next(draws for draws in drawn if draws[1].shape[1] == round(16 * share))


# Layers


def test_sizes_have_the_published_parameters() -> None:
    """The original's base encoder and decoder with 16 x 16 latents: 172 M."""
    with torch.device("meta"):
        model = DeTok(
            new_config(latent_channels=16, patch_size=16, grid=16, encoder="base", decoder="base")
        )
    assert sum(parameter.numel() for parameter in model.parameters()) == 171_712_628
    assert (model.stride, model.latent_channels) == (16, 16)
    assert SIZES["small"] == StackSize(width=512, blocks=8, heads=8)


def test_heads_that_cannot_turn_are_refused() -> None:
    with pytest.raises(ValueError, match="18 channels do not make 3 heads of a multiple of 4"):
        new_config(encoder={"width": 18, "blocks": 1, "heads": 3})


def test_initial_weights_are_those_of_the_table() -> None:
    model = DeTok(new_config())
    model.initialize(torch.Generator().manual_seed(0))
    for name, value in model.named_parameters():
        values = value.detach()
        if "position" in name or "mask_token" in name:
            expected = value.shape[2] ** -0.5
            assert float(values.std()) == pytest.approx(expected, rel=0.3), name
        elif value.ndim == 1:
            assert torch.equal(values, torch.full_like(values, float("norm" in name))), name
        else:
            tolerance = 4 / math.sqrt(value.numel())
            assert float(values.std()) == pytest.approx(0.02, rel=tolerance), name


def test_initial_weights_depend_on_the_generator_alone() -> None:
    first = new_detok(0).state_dict()
    torch.rand(7)
    second, other = new_detok(0).state_dict(), new_detok(1).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["encoder.patch_embed.weight"], other["encoder.patch_embed.weight"])


def test_angles_follow_row_and_column() -> None:
    sines, cosines = rotary_embedding(3, 8).chunk(2, dim=1)
    assert torch.allclose(sines.square() + cosines.square(), torch.ones(9, 8))
    sines = sines.unflatten(0, (3, 3))
    assert torch.equal(sines[0, :, :4], torch.zeros(3, 4))  # row 0
    assert torch.equal(sines[:, 0, 4:], torch.zeros(3, 4))  # column 0
    assert torch.equal(sines[..., :4], sines[..., 4:].transpose(0, 1))
    # In the middle of the image, 7 and 0.0007 turns have become half of that.
    turns = torch.tensor([7.0, 0.0007, 7.0, 0.0007])
    assert torch.allclose(sines[1, 1, :4], (math.pi * turns).sin(), atol=1e-5)


def test_tokens_are_told_where_they_lie(rng: torch.Generator) -> None:
    """Tokens in another order, with their positions, come out in that order."""
    stack = Stack(StackSize(width=16, blocks=2, heads=2), grid=3)
    torch.nn.init.normal_(stack.position, generator=rng)
    x = torch.randn(2, 9, 16, generator=rng)
    order = torch.stack([torch.randperm(9, generator=rng) for _ in range(2)])
    shuffled = torch.take_along_dim(x, order[:, :, None], dim=1)
    with torch.no_grad():
        expected = torch.take_along_dim(stack(x, None), order[:, :, None], dim=1)
        assert torch.allclose(stack(shuffled, order), expected, atol=1e-5)
        assert not torch.allclose(stack(shuffled, None), expected, atol=0.1)


def test_each_latent_is_decoded_where_its_patch_was(images: Tensor) -> None:
    """Before any attention: with blocks that add nothing, a patch moves its own pixels alone."""
    model = new_detok()
    with torch.no_grad():
        for stack in (model.encoder.stack, model.decoder.stack):
            for name, parameter in stack.blocks.named_parameters():
                if ".attn.proj." in name or ".mlp.fc2." in name:
                    parameter.zero_()
        torch.nn.init.dirac_(model.decoder.conv_out.weight)
        changed = images.clone()
        changed[:, :, 2:4, 4:6] += 1
        moments, other = model.encode(images), model.encode(changed)
        moved = (moments != other).any(dim=1)
        assert moved.nonzero()[:, 1:].unique(dim=0).tolist() == [[1, 2]]
        decoded, again = model.decode(moments[:, :3]), model.decode(other[:, :3])
        pixels = (decoded != again).any(dim=1)
        assert pixels[:, 2:4, 4:6].all()
        assert pixels.sum() == 2 * 4


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="8 x 12 pixels, expected 8 x 8"):
        new_detok().encode(torch.zeros(1, 3, 8, 12))


# Corruption


def test_noise_is_mixed_in_by_the_formula(rng: torch.Generator) -> None:
    latents, noise = torch.randn(2, 3, 2, 1, 5, generator=rng)
    t = torch.tensor([0.0, 0.25, 1.0])
    mixed = corrupt(latents, noise, t)
    assert torch.equal(mixed[0], latents[0])
    assert torch.allclose(mixed[1], 0.75 * latents[1] + 0.25 * noise[1])
    assert torch.equal(mixed[2], noise[2])


def test_draws_have_the_distributions_of_the_paper() -> None:
    model = new_detok()
    counts: list[int] = []
    for seed in range(400):
        _, kept, _, _ = draw(model, seed, batch=3)
        counts.append(kept.shape[1])
        for row in kept.tolist():
            assert row == sorted(set(row))
            assert set(row) <= set(range(16))
    # Of U(-0.1, 0.7) an eighth is below 0; of the rest, ceil(16 (1 - ratio)) is even but for edges.
    assert counts.count(16) / 400 == pytest.approx(0.2, abs=0.05)
    assert min(counts) == 5
    assert sum(counts) / 400 == pytest.approx(16 * (1 - 0.7**2 / 2 / 0.8) + 0.5 * 0.875, rel=0.03)
    eps, kept, noise, t = draw(model, batch=2000)
    assert eps.shape == noise.shape == (2000, 3, 1, kept.shape[1])
    assert float(eps.std()) == pytest.approx(1, rel=0.02)
    assert float(noise.std()) == pytest.approx(3, rel=0.02)
    assert (float(t.min()), float(t.max())) == pytest.approx((0, 1), abs=0.01)
    assert float(t.mean()) == pytest.approx(0.5, abs=0.03)
    assert len(kept.unique(dim=0)) > 100  # of each image its own
    assert all(len(draws) == 2000 for draws in (eps, kept, noise, t))


def test_nothing_is_dropped_where_nothing_is_to_be() -> None:
    model = new_detok(drop_ratio_max=0.0)
    for seed in range(50):
        assert torch.equal(draw(model, seed)[1], torch.arange(16).expand(2, 16))


def test_a_training_pass_is_that_of_its_parts(images: Tensor) -> None:
    """Corrupt by hand what an encoder of all patches, told to see some, makes of them."""
    model = new_detok()
    eps, kept, noise, t = kept_of(model, 0.5)
    reconstruction = model(images, (eps, kept, noise, t))
    moments = model.encoder(images, kept).transpose(1, 2)[:, :, None]
    posterior = Posterior.of(moments, 3)
    assert posterior.log_variance is not None
    latents = posterior.mean + (0.5 * posterior.log_variance).exp() * eps
    latents = (1 - t)[:, None, None, None] * latents + t[:, None, None, None] * noise
    expected = model.decoder(latents[:, :, 0].transpose(1, 2), kept)
    assert torch.allclose(reconstruction.images, expected, atol=1e-5)
    assert reconstruction.terms.keys() == {"kl"}
    assert torch.allclose(reconstruction.terms["kl"], 0.01 * posterior.kl().mean())
    assert reconstruction.codes is None


def test_dropped_patches_influence_nothing(images: Tensor) -> None:
    model = new_detok()
    eps, kept, noise, t = kept_of(model, 0.5)
    images.requires_grad_()
    model(images, (eps, kept, noise, t)).images.square().sum().backward()
    assert images.grad is not None
    patches = images.grad.unflatten(2, (4, 2)).unflatten(4, (4, 2))  # (B, 3, 4, 2, 4, 2)
    moved = patches.abs().sum(dim=(1, 3, 5)).flatten(1)  # (B, N)
    seen = torch.zeros(2, 16, dtype=torch.bool).scatter(1, kept, torch.ones_like(kept).bool())
    assert torch.equal(moved > 0, seen)


def test_dropped_positions_are_mask_tokens(images: Tensor) -> None:
    model = new_detok()
    few, every = kept_of(model, 0.5), kept_of(model, 1.0)
    for draws, used in ((few, True), (every, False)):
        model.zero_grad()
        model(images, draws).images.square().sum().backward()
        gradient = model.decoder.mask_token.grad
        assert gradient is not None
        assert bool(gradient.abs().sum() > 0) == used


def test_what_is_kept_whole_is_a_clean_pass(images: Tensor) -> None:
    """With every patch and no noise, corruption is none."""
    model = new_detok(decoder_from_step=0)
    (eps,) = draw(model)
    every = torch.arange(16).expand(2, 16)
    nothing = (eps, every, torch.randn_like(eps), torch.zeros(2))
    clean, same = model(images, (eps,)), model(images, nothing)
    assert torch.allclose(clean.images, same.images, atol=1e-5)
    assert torch.allclose(clean.terms["kl"], same.terms["kl"])


@pytest.mark.parametrize("training", [True, False])
def test_encoding_never_drops_or_draws(images: Tensor, *, training: bool) -> None:
    model = new_detok().train(training)
    state = torch.get_rng_state()
    with torch.no_grad():
        first, second = model.encode(images), model.encode(images)
        assert torch.equal(first, second)
        assert torch.equal(model.decode(first[:, :3]), model.decode(second[:, :3]))
        whole = model.encoder(images, torch.arange(16).expand(2, 16))
    assert torch.allclose(first.flatten(2).transpose(1, 2), whole, atol=1e-5)
    assert torch.equal(torch.get_rng_state(), state)


# Tuning the decoder


def test_what_is_drawn_changes_at_the_step(images: Tensor) -> None:
    model = new_detok(decoder_from_step=5)
    assert [len(draw(model, step=step)) for step in (0, 4, 5, 6)] == [4, 4, 1, 1]
    assert [len(draw(new_detok(decoder_from_step=None), step=10**9))] == [4]


def test_tuning_gives_the_decoder_alone_a_gradient(images: Tensor) -> None:
    model = new_detok()
    reconstruction = model(images, draw(model, step=5))
    loss = reconstruction.images.square().sum() + reconstruction.terms["kl"]
    loss.backward()
    with_gradient = {n for n, p in model.named_parameters() if p.grad is not None}
    decoder = {f"decoder.{name}" for name, _ in model.decoder.named_parameters()}
    assert with_gradient == decoder - {"decoder.mask_token"}
    assert model.last_layer.grad is not None
