"""Every kind of generator trains and generates: heads, attention, orders, and known tokens."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from sample_configs import sample_config
from torch import Tensor

from mar.heads.base import Condition
from mar.model import masking
from mar.model.mar import MAR
from mar.sampling.config import SampleConfig
from mar.sampling.generate import KnownTokens, generate
from mar.sampling.noise import SamplingNoise, draw_noise


LABELS = torch.tensor([0, 3, 1, 4])
SIZE = {"blocks": 1, "width": 16}
HEADS: dict[str, dict[str, Any]] = {
    "diffusion": {"kind": "diffusion", "size": SIZE, "noise_samples_per_token": 2},
    "flow": {"kind": "flow", "size": SIZE, "noise_samples_per_token": 2, "times": None},
    "meanflow": {"kind": "meanflow", "size": SIZE, "noise_samples_per_token": 2, "times": None},
    "energy": {"kind": "energy", "size": SIZE, "noise_samples_per_token": 2, "alpha": 1.0},
    "l2": {"kind": "l2"},
    "cross_entropy": {"kind": "cross_entropy"},
}
CAUSAL = {"attention": "causal", "mask_ratio": None}


def noise_of(model: MAR, config: SampleConfig) -> SamplingNoise:
    return draw_noise(model, range(4), config)


@pytest.fixture
def make(variant: Callable[..., MAR]) -> Callable[..., MAR]:
    """Return a maker of generators of a head; one of codes has 48 tokens, the others 12."""

    def make(head: str, **changes: Any) -> MAR:
        if head == "cross_entropy":
            changes = {"patch_size": 1, **changes}
        return variant(11 if head == "cross_entropy" else None, head=HEADS[head], **changes)

    return make


def latents_of(model: MAR, rng: torch.Generator) -> Tensor:
    if model.config.is_discrete:
        return torch.randint(11, (4, 1, 8, 6), generator=rng)
    return torch.randn(4, 2, 8, 6, generator=rng)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("attention", [{}, CAUSAL], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("order", ["random", "raster"])
def test_every_weight_of_every_variant_is_trained(
    make: Callable[..., MAR],
    rng: torch.Generator,
    head: str,
    attention: dict[str, Any],
    order: str,
) -> None:
    model = make(head, order=order, **attention)
    dropped = torch.tensor([True, False, False, False])
    draws = model.draw(4, rng)
    while not attention and draws.num_hidden == model.num_tokens:  # visible tokens teach too
        draws = model.draw(4, rng)
    draws = type(draws)(draws.orders, draws.num_hidden, dropped, draws.head)
    model(latents_of(model, rng), LABELS, draws).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("order", ["random", "raster"])
def test_causal_generation_is_the_same_without_the_cache(
    make: Callable[..., MAR], head: str, order: str
) -> None:
    model = make(head, order=order, **CAUSAL)
    # Guidance enlarges what little they differ by.
    config = sample_config(head, order=order, num_steps=model.num_tokens, guidance_scale=1.0)
    noise = noise_of(model, config)
    cached = generate(model, LABELS, noise, config).float()
    again = generate(model, LABELS, noise, config, cached=False)
    assert float((again - cached).norm() / cached.norm()) < 1e-3
    assert not torch.allclose(cached[0], cached[1], atol=1e-2)


def test_step_by_step_generation_is_teacher_forcing(make: Callable[..., MAR]) -> None:
    """What L2 generates without noise, it predicts from itself in one pass."""
    model = make("l2", **CAUSAL)
    config = sample_config("l2", guidance_scale=1.0, num_steps=12)
    noise = noise_of(model, config)
    tokens = model.patchify(generate(model, LABELS, noise, config))
    condition = model.transformer.condition(LABELS, torch.zeros(4, dtype=torch.bool))
    with torch.no_grad():
        z = model.transformer(tokens, noise.orders.flip(1), condition)
        forced = model.head.sample(
            Condition(z.flatten(0, 1)), noise.at(torch.arange(12).expand(4, 12)), config.head
        )
    assert torch.allclose(forced.reshape(tokens.shape), tokens, atol=1e-4)


@pytest.mark.parametrize("kind", ["diffusion", "flow", "meanflow", "energy"])
def test_a_head_samples_in_float32_under_autocast(
    make: Callable[..., MAR], kind: str, rng: torch.Generator
) -> None:
    model, config = make(kind), sample_config(kind)
    with torch.no_grad():  # a new denoiser puts out zeros
        for parameter in model.head.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=rng)
    noise = noise_of(model, config).at(torch.arange(12).expand(4, 12))
    width = model.transformer.head_position.shape[2]
    z, z_null = torch.randn(2, 48, width, generator=rng)
    conditions = (Condition(z), Condition(z, z_null, 2.0))
    exact = [model.head.sample(each, noise, config.head) for each in conditions]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [model.head.sample(each, noise, config.head) for each in conditions]
    for one, other in zip(exact, found, strict=True):
        assert torch.equal(one, other)


def test_what_sees_any_tokens_can_generate_row_by_row(make: Callable[..., MAR]) -> None:
    model = make("diffusion", order="random")
    left: list[list[int]] = []
    config = sample_config(order="raster", num_steps=12, guidance_scale=1.0)
    latents = generate(
        model,
        LABELS,
        noise_of(model, config),
        config,
        on_tokens=lambda _, hidden: left.append(sorted(hidden[2].tolist())),
    )
    assert latents.isfinite().all()
    assert left == [list(range(step, 12)) for step in range(1, 13)]


def test_raster_order_appears_row_by_row(make: Callable[..., MAR]) -> None:
    model = make("diffusion", order="raster")
    noise = noise_of(model, sample_config(order="raster"))
    assert noise.orders.flip(1)[2].tolist() == list(range(12))
    draws = model.draw(3, torch.Generator().manual_seed(0))
    _, visible = masking.split_orders(draws.orders, draws.num_hidden)
    assert visible.tolist() == [list(range(12 - draws.num_hidden))] * 3


def test_by_confidence_the_surest_codes_are_kept(make: Callable[..., MAR]) -> None:
    """In two steps, the tokens of the first are drawn likelier than those left for the second."""
    model = make("cross_entropy")
    config = sample_config("cross_entropy", order="confidence", num_steps=2, guidance_scale=1.0)
    left: list[Tensor] = []
    noise = noise_of(model, config)
    latents = generate(
        model, LABELS, noise, config, on_tokens=lambda _, hidden: left.append(hidden.clone())
    )
    codes = model.patchify(latents)
    first = [set(range(48)) - set(row.tolist()) for row in left[0]]
    assert [hidden.shape[1] for hidden in left] == [48 - len(first[0]), 0]
    condition = model.transformer.condition(LABELS, torch.zeros(4, dtype=torch.bool))
    nothing = torch.zeros(4, 0, dtype=torch.int64)
    with torch.no_grad():
        z = model.transformer(torch.zeros_like(codes), nothing, condition)
        everywhere = torch.arange(48).expand(4, 48)
        drawn = model.head.sample(Condition(z.flatten(0, 1)), noise.at(everywhere), config.head)
        logits = model.head.get_submodule("linear")(z.flatten(0, 1))
    sure = logits.softmax(dim=1).gather(1, drawn).reshape(4, 48)
    for row, kept in enumerate(first):
        others = [index for index in range(48) if index not in kept]
        assert float(sure[row, list(kept)].min()) >= float(sure[row, others].max()) - 1e-6
        assert torch.equal(codes[row, list(kept), 0], drawn.reshape(4, 48)[row, list(kept)])


def test_by_confidence_every_step_draws_afresh(make: Callable[..., MAR]) -> None:
    model = make("cross_entropy")
    config = sample_config("cross_entropy", order="confidence", num_steps=3)
    noise = draw_noise(model, range(300), config)
    everywhere = torch.arange(48).expand(300, 48)
    draws = torch.stack([noise.at(everywhere, step).initial.flatten() for step in range(3)])
    assert (torch.corrcoef(draws) - torch.eye(3)).abs().max() < 0.05
    assert torch.allclose(draws.std(dim=1), torch.ones(3), atol=0.02)
    alone = draw_noise(model, [7], config)  # from seed and index alone
    for step in range(3):
        found = alone.at(everywhere[:1], step).initial
        assert torch.equal(found, noise.at(everywhere, step).initial.reshape(300, 48, 1)[7])


def test_by_confidence_a_later_draw_changes_what_is_left_alone(make: Callable[..., MAR]) -> None:
    model = make("cross_entropy")
    config = sample_config("cross_entropy", order="confidence", num_steps=2, guidance_scale=1.0)
    left: list[Tensor] = []
    noise = noise_of(model, config)
    assert noise.later is not None
    other = replace(noise, later=-noise.later)
    first, second = (
        model.patchify(
            generate(model, LABELS, n, config, on_tokens=lambda _, hidden: left.append(hidden))
        )
        for n in (noise, other)
    )
    assert torch.equal(left[0], left[2])  # after the first of two steps, in both generations
    kept = torch.ones(4, 48).scatter(1, left[0], 0.0).bool()
    assert torch.equal(first[kept], second[kept])
    assert (first[~kept] != second[~kept]).float().mean() > 0.5


@pytest.mark.parametrize("num_hidden", [12, 7, 1, 0])
def test_known_tokens_stay_and_the_others_are_generated(
    make: Callable[..., MAR], rng: torch.Generator, num_hidden: int
) -> None:
    model = make("diffusion")
    given = torch.randn(4, 12, 8, generator=rng)
    mask = torch.zeros(12, dtype=torch.bool)
    mask[torch.randperm(12, generator=rng)[:num_hidden]] = True
    config = sample_config()
    known = KnownTokens(given, mask)
    tokens = model.patchify(generate(model, LABELS, noise_of(model, config), config, known=known))
    assert torch.equal(tokens[:, ~mask], given[:, ~mask])
    assert (tokens[:, mask] != given[:, mask]).all()


def test_hidden_values_of_known_tokens_do_not_count(
    make: Callable[..., MAR], rng: torch.Generator
) -> None:
    model = make("diffusion")
    given = torch.randn(4, 12, 8, generator=rng)
    mask = torch.arange(12) < 5
    config = sample_config()
    noise = noise_of(model, config)
    first = generate(model, LABELS, noise, config, known=KnownTokens(given, mask))
    other = torch.where(mask[:, None], 9.0, given)
    assert torch.equal(
        generate(model, LABELS, noise, config, known=KnownTokens(other, mask)), first
    )


@pytest.mark.parametrize("changes", [CAUSAL, {"order": "raster"}], ids=["causal", "raster"])
def test_what_cannot_see_later_tokens_cannot_be_given_some(
    make: Callable[..., MAR], changes: dict[str, Any]
) -> None:
    model = make("diffusion", **changes)
    config = sample_config(order=model.config.order, num_steps=12)
    known = KnownTokens(torch.zeros(4, 12, 8), torch.arange(12) < 5)
    with pytest.raises(ValueError, match="known tokens need generator"):
        generate(model, LABELS, noise_of(model, config), config, known=known)


@pytest.mark.parametrize(
    ("head", "generator_changes", "changes", "message"),
    [
        ("flow", {}, {}, r"sample\.head\.kind: must be generator\.head\.kind, 'flow', got 'diff"),
        ("diffusion", {}, {"order": "confidence"}, r"sample\.order: 'confidence' needs"),
        ("diffusion", {"order": "raster"}, {}, r"sample\.order: must be .*'raster', got 'random'"),
        ("diffusion", CAUSAL, {"order": "raster"}, r"sample\.order: must be .*got 'raster'"),
        ("diffusion", CAUSAL, {}, r"sample\.num_steps: must be 12, .* one by one; got 5"),
    ],
)
def test_settings_that_do_not_fit_the_generator_are_refused(
    make: Callable[..., MAR],
    head: str,
    generator_changes: dict[str, Any],
    changes: dict[str, Any],
    message: str,
) -> None:
    model, config = make(head, **generator_changes), sample_config(**changes)
    with pytest.raises(ValueError, match=message):
        generate(model, LABELS, noise_of(model, config), config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "causal"}, r"generator\.mask_ratio: must be null"),
        ({"mask_ratio": None}, r"generator\.mask_ratio: must be min and std"),
        ({"head": HEADS["cross_entropy"]}, r"generator\.head\.kind: cross_entropy needs a token"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(
    variant: Callable[..., MAR], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        variant(**changes)
