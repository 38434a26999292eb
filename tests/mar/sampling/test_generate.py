"""Each token is drawn once, from the known ones; an image depends on its seed and index alone."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from sample_configs import SAMPLERS, sample_config
from torch import Tensor

from mar.heads.denoiser import DenoiserSize
from mar.heads.diffusion_loss import DiffusionConfig, DiffusionLoss
from mar.heads.flow import FlowConfig, RectifiedFlow
from mar.latents.posterior import LatentShape
from mar.model.mar import MAR
from mar.model.masking import num_hidden_after
from mar.model.prediction import BidirectionalPredictor
from mar.sampling.config import SampleConfig
from mar.sampling.generate import generate, guidance_at
from mar.sampling.labels import balanced_labels
from mar.sampling.noise import SamplingNoise, draw_noise


SECTIONS = {"diffusion": DiffusionConfig, "flow": FlowConfig}
LABELS = torch.tensor([0, 3, 1, 4, 4, 2, 0, 1])


def noise_of(model: MAR, indices: list[int], seed: int = 0) -> SamplingNoise:
    return draw_noise(model, indices, sample_config(seed=seed))


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("num_steps", [1, 5, 12])
def test_each_token_is_drawn_exactly_once_from_those_that_are_known(
    tiny_model: MAR, num_steps: int, guidance_scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs: list[tuple[Tensor, Tensor]] = []
    predict = BidirectionalPredictor.__call__

    def record(
        self: BidirectionalPredictor, tokens: Tensor, visible: Tensor, drawn: Tensor
    ) -> Tensor:
        inputs.append((tokens, visible))
        return predict(self, tokens, visible, drawn)

    monkeypatch.setattr(BidirectionalPredictor, "__call__", record)
    noise = noise_of(tiny_model, [0, 1, 2])
    config = sample_config(num_steps=num_steps, guidance_scale=guidance_scale)
    tokens = tiny_model.patchify(generate(tiny_model, LABELS[:3], noise, config))
    assert (tokens != 0).all()
    counts = [12, *num_hidden_after(12, num_steps)]
    assert len(inputs) == num_steps
    for hidden, (given, visible) in zip(counts, inputs, strict=False):
        assert torch.equal(visible, noise.orders[:, hidden:].sort(dim=1).values)
        known = torch.zeros(3, 12).scatter(1, visible, 1.0).bool()
        assert torch.equal(given[known], tokens[known])
        assert torch.equal(given[~known], torch.zeros_like(given[~known]))


def test_images_are_the_same_in_batches_of_any_size(tiny_model: MAR) -> None:
    config = sample_config(guidance_scale=2.0)
    together = generate(tiny_model, LABELS, noise_of(tiny_model, list(range(8))), config)
    for part in ([0, 1, 2, 3], [4, 5, 6, 7], [6, 1]):
        labels = LABELS[part]
        parted = generate(tiny_model, labels, noise_of(tiny_model, part), config)
        assert torch.allclose(parted, together[part], atol=1e-4)


def test_noise_depends_on_seed_and_index_alone(tiny_model: MAR) -> None:
    first, second, other = (
        noise_of(tiny_model, [0, 1, 2]),
        noise_of(tiny_model, [2, 0]),
        noise_of(tiny_model, [0, 1, 2], seed=1),
    )
    for name in ("orders", "initial"):
        assert torch.equal(getattr(first, name)[[2, 0]], getattr(second, name))
        assert not torch.equal(getattr(first, name)[0], getattr(first, name)[1])
        assert not torch.equal(getattr(first, name)[0], getattr(other, name)[0])
    assert torch.equal(first.steps[:, [2, 0]], second.steps)
    assert not torch.equal(first.steps[:, 0], other.steps[:, 0])


def test_noise_belongs_to_positions(tiny_model: MAR) -> None:
    noise = noise_of(tiny_model, [0, 1])
    rows = noise.at(torch.tensor([[3, 7, 8], [0, 1, 11]]))
    assert torch.equal(rows.initial[1], noise.initial[0, 7])
    assert torch.equal(rows.initial[5], noise.initial[1, 11])
    assert torch.equal(rows.steps[:, 3], noise.steps[:, 1, 0])


def test_guidance_of_one_is_no_guidance(tiny_model: MAR) -> None:
    noise = noise_of(tiny_model, list(range(8)))
    plain = generate(tiny_model, LABELS, noise, sample_config(guidance_scale=1.0))
    nearly = sample_config(guidance_scale=1 + 1e-12, guidance_schedule="constant")
    assert torch.allclose(generate(tiny_model, LABELS, noise, nearly), plain, atol=1e-4)
    strong = sample_config(guidance_scale=5.0)
    assert not torch.allclose(generate(tiny_model, LABELS, noise, strong), plain, atol=0.1)


def test_the_class_and_the_seed_change_the_image(tiny_model: MAR) -> None:
    def image(label: int, seed: int) -> Tensor:
        noise = noise_of(tiny_model, [0], seed)
        return generate(tiny_model, torch.tensor([label]), noise, sample_config())

    assert torch.equal(image(1, 0), image(1, 0))
    assert not torch.allclose(image(1, 0), image(2, 0), atol=1e-2)
    assert not torch.allclose(image(1, 0), image(1, 1), atol=1e-2)


def test_temperature_scales_the_noise_of_the_steps_alone(tiny_model: MAR) -> None:
    noise = noise_of(tiny_model, list(range(8)))
    other_steps, other_start = (
        replace(noise, steps=-noise.steps),
        replace(noise, initial=-noise.initial),
    )

    def difference(other: SamplingNoise, temperature: float) -> float:
        config = sample_config(temperature=temperature)
        first, second = (generate(tiny_model, LABELS, n, config) for n in (noise, other))
        return float((first - second).abs().mean())

    assert difference(other_steps, 1e-9) < 1e-4
    assert difference(other_steps, 1.0) > 0.1
    assert difference(other_start, 1e-9) > 0.1


# Half and half


@pytest.mark.parametrize(("num_steps", "last"), [(2, 1), (5, 2), (9, 6)])
def test_the_second_half_of_a_checkerboard_follows_the_first(
    tiny_model: MAR, num_steps: int, last: int
) -> None:
    """On 4 rows of 3; each token is drawn once, though there are more steps than it has tokens."""
    config = sample_config(num_steps=num_steps, reconstruction_steps=last)
    hidden: list[Tensor] = []
    noise = noise_of(tiny_model, [0, 1, 2])
    latents = generate(
        tiny_model, LABELS[:3], noise, config, on_tokens=lambda _, left: hidden.append(left)
    )
    assert (tiny_model.patchify(latents) != 0).all()
    assert len(hidden) == num_steps
    half = torch.tensor([0, 2, 4, 6, 8, 10])
    assert torch.equal(hidden[num_steps - last - 1].sort(dim=1).values, (half + 1).expand(3, 6))
    for earlier, later in pairwise(hidden):
        assert later.shape[1] < earlier.shape[1]
        assert torch.equal(later, earlier[:, : later.shape[1]])
    assert hidden[-1].shape[1] == 0
    half_orders = noise.orders[~torch.isin(noise.orders, half)].reshape(3, 6)
    assert torch.equal(hidden[num_steps - last - 1], half_orders)  # in the random order


def test_half_and_half_needs_a_model_of_any_order(variant: Callable[..., MAR]) -> None:
    for steps, order, message in (
        (5, "random", "must be below sample.num_steps, 5"),
        (2, "raster", "must be null"),
    ):
        model = variant(order=order)
        config = sample_config(reconstruction_steps=steps, order=order)
        with pytest.raises(ValueError, match=rf"sample\.reconstruction_steps: {message}"):
            generate(model, LABELS[:1], draw_noise(model, [0], config), config)


# Annealed denoising steps


def count_evaluations(model: MAR) -> list[int]:
    """Return a list that grows by one at each evaluation of the denoiser."""
    calls: list[int] = []
    assert isinstance(model.head, DiffusionLoss | RectifiedFlow)
    model.head.denoiser.final.norm.register_forward_pre_hook(lambda _, __: calls.append(1))
    return calls


def wide_model(model: MAR, kind: str) -> MAR:
    """Return a model of 64 tokens, so that it can be generated in 64 steps."""
    size = DenoiserSize(blocks=1, width=8)
    fields = {"kind": kind, "size": size, "noise_samples_per_token": 1}
    if kind == "flow":
        fields["times"] = None
    head = SECTIONS[kind].model_validate(fields)
    config = model.config.model_copy(update={"head": head})
    wide = MAR(config, LatentShape(channels=2, height=16, width=16), num_classes=5)
    wide.initialize(torch.Generator().manual_seed(0))
    return wide.eval()


@pytest.mark.parametrize("kind", SECTIONS)
@pytest.mark.parametrize(("schedule", "total"), [("linear", 1733), ("two-stage", 32 * 55)])
def test_annealed_steps_save_evaluations(
    tiny_model: MAR, kind: str, schedule: str, total: int
) -> None:
    """50 to 5 over 64 generation steps: the sum of the schedule, against 3200.

    Linear: 5 * 64, and 45 k / 63 rounded down for k from 63 to 0, which sum to 1413.
    """
    model = wide_model(tiny_model, kind)
    config = sample_config(
        kind,
        num_steps=64,
        head={**SAMPLERS[kind], "num_steps": 50, "final_num_steps": 5, "annealing": schedule},
    )
    calls = count_evaluations(model)
    generate(model, LABELS[:1], draw_noise(model, [0], config), config)
    each = 2 if kind == "flow" else 1  # Heun evaluates twice
    assert len(calls) == each * total
    assert total == sum(config.head.at_step(step, 64).num_steps for step in range(64))  # pyright: ignore[reportAttributeAccessIssue]


def test_listed_steps_are_taken(tiny_model: MAR) -> None:
    config = sample_config(head={**SAMPLERS["diffusion"], "annealing": [2, 4, 3, 2, 2]})
    calls = count_evaluations(tiny_model)
    generate(tiny_model, LABELS[:1], draw_noise(tiny_model, [0], config), config)
    assert len(calls) == 2 + 4 + 3 + 2 + 2


def annealed(solver: str = "ancestral") -> SampleConfig:
    head = {**SAMPLERS["diffusion"], "num_steps": 9, "final_num_steps": 3, "solver": solver}
    return sample_config(head=head)


@pytest.mark.parametrize("solver", ["ancestral", "ddim", "dpm++"])
def test_annealed_images_are_the_same_in_batches_of_any_size(tiny_model: MAR, solver: str) -> None:
    config = annealed(solver)
    together = generate(tiny_model, LABELS, draw_noise(tiny_model, list(range(8)), config), config)
    assert torch.isfinite(together).all()
    for part in ([0, 1, 2, 3], [6, 1], [5]):
        noise = draw_noise(tiny_model, part, config)
        alone = generate(tiny_model, LABELS[part], noise, config)
        assert torch.allclose(alone, together[part], atol=1e-4)
    again = generate(tiny_model, LABELS, draw_noise(tiny_model, list(range(8)), config), config)
    assert torch.equal(again, together)


def test_annealed_steps_use_the_noise_of_the_first_steps(tiny_model: MAR) -> None:
    """In the last of the generation steps, 3 of 9 are taken: the others' noise is not used."""
    config = annealed()
    noise = draw_noise(tiny_model, [0, 1], config)
    assert len(noise.steps) == 9
    last = noise.orders[:, :1]
    assert torch.equal(noise.at(last, 4, 3).steps, noise.at(last).steps[:3])
    changed = noise.steps.clone()
    changed[3:].scatter_(2, last.expand(6, 2, 8)[:, :, None], 9.0)
    drawn, same = (
        generate(tiny_model, LABELS[:2], drawn_from, config)
        for drawn_from in (noise, replace(noise, steps=changed))
    )
    assert torch.equal(drawn, same)


def test_generated_latents_respect_the_bound(tiny_model: MAR) -> None:
    noise = noise_of(tiny_model, list(range(8)))
    bounded = generate(tiny_model, LABELS, noise, sample_config(x_0_bound=0.5))
    free = generate(tiny_model, LABELS, noise, sample_config(x_0_bound=None))
    assert float(bounded.abs().max()) <= 0.5 < float(free.abs().max())


def test_more_steps_than_tokens_are_refused(tiny_model: MAR) -> None:
    with pytest.raises(
        ValueError, match=r"sample\.num_steps: must be 1 to 12, the tokens of an image, got 13"
    ):
        generate(tiny_model, LABELS[:1], noise_of(tiny_model, [0]), sample_config(num_steps=13))


def test_linear_guidance_rises_with_the_known_tokens() -> None:
    config = sample_config(guidance_scale=3.0)
    assert [guidance_at(config, known, 8) for known in (0, 2, 4, 8)] == [1, 1.5, 2, 3]


def test_constant_guidance_is_constant() -> None:
    config = sample_config(guidance_scale=3.0, guidance_schedule="constant")
    assert [guidance_at(config, known, 8) for known in (0, 2, 4, 8)] == [3, 3, 3, 3]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"guidance_scale": 0.9}, "guidance_scale"),
        ({"guidance_schedule": "cosine"}, "guidance_schedule"),
        ({"temperature": 0.0}, "temperature"),
        ({"head": {"kind": "diffusion", "num_steps": 1001}}, "num_steps"),
        ({"x_0_bound": 0.0}, "x_0_bound"),
        ({"head": {**SAMPLERS["diffusion"], "solver": "heun"}}, "solver"),
        ({"head": {**SAMPLERS["diffusion"], "annealing": "exponential"}}, "annealing"),
        ({"head": {**SAMPLERS["diffusion"], "annealing": [4, 1]}}, "2 or more, got 1"),
        (
            {"head": {**SAMPLERS["diffusion"], "annealing": [4, 4, 3, 3, 2, 2]}},
            "annealing lists 6 generation steps, and sample.num_steps is 5",
        ),
        ({"head": {**SAMPLERS["diffusion"], "final_num_steps": 1}}, "final_num_steps"),
        ({"head": {"kind": "l2", "final_num_steps": 5}}, "final_num_steps"),
        ({"labels": []}, "labels"),
    ],
)
def test_senseless_settings_are_refused(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(ValidationError, match=name):
        sample_config(**changes)


@pytest.mark.parametrize("num_images", [1, 5, 12, 30])
def test_every_prefix_of_the_labels_is_balanced(num_images: int) -> None:
    labels = balanced_labels(num_images, None, 5)
    assert len(labels) == num_images
    for end in range(1, num_images + 1):
        counts = labels[:end].bincount(minlength=5)
        assert int(counts.max() - counts.min()) <= 1


def test_listed_labels_are_cycled_through() -> None:
    assert balanced_labels(7, [3, 0, 3], 5).tolist() == [3, 0, 3, 3, 0, 3, 3]


@pytest.mark.parametrize("label", [5, -1])
def test_labels_that_are_no_class_are_refused(label: int) -> None:
    expected = rf"sample\.labels: {label} is not a class, they are 0 to 4"
    with pytest.raises(ValueError, match=expected):
        balanced_labels(3, [0, label], 5)
