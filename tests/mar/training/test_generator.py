"""Training is a function of its seed alone, goes on where it stopped, and learns."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hand_over import hand_over
from torch import Tensor, nn
from training_in_processes import COUNT, open_cache

from mar.data.batches import batch_indices
from mar.heads.diffusion_loss import DiffusionLoss, DiffusionSampler
from mar.latents.cache import LatentCache, write_latents
from mar.latents.posterior import LatentShape
from mar.model.mar import MAR, GeneratorConfig
from mar.sampling.config import SampleConfig
from mar.sampling.generate import generate
from mar.sampling.noise import draw_noise
from mar.training.generator import (
    InitialWeights,
    TrainingConfig,
    broken_samples,
    new_trainer,
    train,
)
from mar.training.step import Step
from mar.training.trainer import Trainer


def make_config(**changes: Any) -> TrainingConfig:
    fields: dict[str, Any] = {
        "seed": 0,
        "steps": 4,
        "batch_size": 6,
        "lr": 0.01,
        "lr_schedule": "constant",
        "warmup_steps": 2,
        "beta_1": 0.9,
        "beta_2": 0.95,
        "weight_decay": 0.02,
        "gradient_clip": 3.0,
        "ema_decay": 0.9,
        "averages": {"widths": [0.05, 0.1], "snapshots": 2, "dtype": "float32"},
        "curve_steps": 1,
        "preview_steps": 1,
        **changes,
    }
    return TrainingConfig.model_validate(fields)


@pytest.fixture
def make_cache(tmp_path: Path) -> Callable[..., LatentCache]:
    """Return a maker of a cache of eight random images of a class each, with little variance."""

    def make(shape: LatentShape, *, alike: bool = False, broken: int | None = None) -> LatentCache:
        rng = torch.Generator().manual_seed(4)
        grid = (COUNT, shape.channels, shape.height, shape.width)
        means = torch.randn(grid, generator=rng)
        moments = torch.cat([means, torch.full(grid, -12.0)], dim=1)
        labels = torch.arange(COUNT)
        if alike:
            moments, labels = moments[:1].expand(moments.shape), torch.zeros_like(labels)
        if broken is not None:
            moments[broken, : shape.channels] = 1e38
        names = [str(index) for index in range(COUNT)]
        path = tmp_path / "0.arrow"
        write_latents(path, moments, None, labels=labels, names=names, dtype="float32")
        return open_cache(tmp_path, shape)

    return make


@pytest.fixture
def cache(make_cache: Callable[..., LatentCache], tiny_model: MAR) -> LatentCache:
    return make_cache(tiny_model.latent)


def fresh(model: MAR, config: TrainingConfig, **changes: Any) -> Trainer:
    """Return a trainer of a model like this one, for eight classes."""
    torch.rand(3)  # whatever the global generator is at
    fields = {**model.config.model_dump(), **changes}
    return new_trainer(MAR(GeneratorConfig.model_validate(fields), model.latent, COUNT), config)


def run(
    trainer: Trainer, cache: LatentCache, config: TrainingConfig, *, micro_batch: int = 8
) -> list[Step]:
    return list(train(trainer, cache, config, micro_batch=micro_batch, autocast=nullcontext))


def state(trainer: Trainer) -> dict[str, Tensor]:
    """Return all numbers that a training has."""
    moments = trainer.optimizer.state_dict()["state"]
    optimizer = {f"{i} {key}": value for i, part in moments.items() for key, value in part.items()}
    averages = {"ema": trainer.ema, **trainer.averages}
    averaged = {
        f"{which} {name}": value
        for which, model in averages.items()
        for name, value in model.state_dict().items()
    }
    return {**trainer.model.state_dict(), **averaged, **optimizer}


def assert_same_state(first: Trainer, second: Trainer) -> None:
    one, other = state(first), state(second)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_a_resumed_training_equals_an_undisturbed_one(
    tiny_model: MAR, cache: LatentCache, tmp_path: Path
) -> None:
    config = make_config()
    whole, first, second = (fresh(tiny_model, config) for _ in range(3))
    assert tiny_model.config.dropout > 0
    losses = [float(step.loss) for step in run(whole, cache, config)]
    before = [float(step.loss) for step in run(first, cache, make_config(steps=2))]
    hand_over(first, second, tmp_path)
    torch.rand(5)
    after = [float(step.loss) for step in run(second, cache, config)]
    assert before + after == losses
    assert (whole.step, second.step) == (4, 4)
    assert_same_state(whole, second)
    assert run(second, cache, config) == []


def test_a_training_depends_on_its_seed_alone(tiny_model: MAR, cache: LatentCache) -> None:
    trainers: list[Trainer] = []
    for seed in (1, 1, 2):
        config = make_config(seed=seed, steps=2)
        trainers.append(fresh(tiny_model, config))
        run(trainers[-1], cache, config)
    first, second, other = trainers
    assert_same_state(first, second)
    name = "transformer.mask_token"
    assert not torch.equal(first.model.state_dict()[name], other.model.state_dict()[name])


def test_each_seed_and_step_has_draws_of_its_own(
    make_cache: Callable[..., LatentCache], tiny_model: MAR
) -> None:
    """With weights that stay and images that are alike, nothing else tells losses apart."""
    cache = make_cache(tiny_model.latent, alike=True)
    losses: list[float] = []
    for seed in (0, 1):
        trainer = fresh(tiny_model, make_config())  # of the same weights
        config = make_config(seed=seed, steps=3, lr=1e-30)
        trainer.config = config
        losses += [float(step.loss) for step in run(trainer, cache, config)]
    assert len(set(losses)) == 6


def test_each_seed_and_step_has_dropout_of_its_own(tiny_model: MAR, cache: LatentCache) -> None:
    seeds: list[int] = []
    for seed in (0, 1):
        config = make_config(seed=seed, steps=3)
        trainer = fresh(tiny_model, config)
        for _ in train(trainer, cache, config, micro_batch=8, autocast=nullcontext):
            seeds.append(torch.initial_seed())  # dropout knows torch's own generator only
    assert len(set(seeds)) == 6


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_a_step_does_not_depend_on_the_micro_batch(
    tiny_model: MAR, cache: LatentCache, micro_batch: int
) -> None:
    config = make_config(steps=1)
    outcomes: list[tuple[Step, dict[str, Tensor]]] = []
    for size in (8, micro_batch):
        trainer = fresh(tiny_model, config, dropout=0.0)
        (step,) = run(trainer, cache, config, micro_batch=size)
        named = trainer.model.named_parameters()
        outcomes.append((step, {name: p.grad for name, p in named if p.grad is not None}))
    (whole, gradients), (parts, others) = outcomes
    assert torch.allclose(whole.loss, parts.loss, rtol=1e-5)
    assert torch.allclose(whole.grad_norm, parts.grad_norm, rtol=1e-4)
    for name, gradient in gradients.items():
        assert torch.allclose(others[name], gradient, rtol=1e-3, atol=1e-6), name


def test_biases_norms_and_the_denoiser_do_not_decay(tiny_model: MAR) -> None:
    trainer = new_trainer(tiny_model, make_config())
    names = {id(parameter): name for name, parameter in tiny_model.named_parameters()}
    decayed, others = (
        [names.pop(id(parameter)) for parameter in group["params"]]
        for group in trainer.optimizer.param_groups
    )
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [0.02, 0.0]
    assert not names  # each was in one group, once
    assert not [name for name in decayed if name.startswith("head.") or "norm" in name]
    assert not [name for name in decayed if name.endswith("bias")]
    matrices = {n for n, p in tiny_model.transformer.named_parameters("transformer") if p.ndim >= 2}
    assert set(decayed) == matrices
    assert "transformer.encoder_position" in decayed
    assert [name for name in others if name.startswith("head.denoiser")]


def test_new_weights_are_the_initial_ones(tiny_model: MAR) -> None:
    trainer = new_trainer(tiny_model, make_config())
    for model in (trainer.model, trainer.ema):
        assert isinstance(model, MAR)
        assert isinstance(model.head, DiffusionLoss)
        final = model.head.denoiser.final.linear
        assert torch.equal(final.weight, torch.zeros_like(final.weight))
        norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm) and m.bias is not None]
        assert all(torch.equal(norm.bias, torch.zeros_like(norm.bias)) for norm in norms)


def test_a_tiny_generator_learns_eight_latents_by_heart(
    make_cache: Callable[..., LatentCache], tiny_model: MAR
) -> None:
    cache = make_cache(LatentShape(channels=2, height=4, width=4))
    size = {"encoder_width": 32, "encoder_blocks": 1, "decoder_blocks": 1}
    fields = tiny_model.config.model_dump()
    head = {"kind": "diffusion", "size": {"blocks": 2, "width": 64}, "noise_samples_per_token": 16}
    fields = {**fields, "size": {**fields["size"], **size}, "head": head}
    fields = {**fields, "dropout": 0.0, "label_drop": 0.0}
    model = MAR(GeneratorConfig.model_validate(fields), cache.info.latent, COUNT)
    config = make_config(steps=200, batch_size=8, lr=0.005, warmup_steps=10)
    losses = torch.stack([step.loss for step in run(new_trainer(model, config), cache, config)])
    assert float(losses[-20:].mean()) < 0.25 * float(losses[:10].mean())
    sampling = SampleConfig(
        seed=0,
        num_images=COUNT,
        weights="ema",
        labels=None,
        prompts=None,
        num_steps=4,
        order="random",
        guidance_scale=1.0,
        guidance_schedule="linear",
        reconstruction_steps=None,
        head=DiffusionSampler(
            kind="diffusion",
            num_steps=25,
            final_num_steps=None,
            annealing="linear",
            solver="ancestral",
            temperature=1.0,
            x_0_bound=3.0,
            precision="float32",
        ),
        shard_images=COUNT,
    )
    noise = draw_noise(model, range(COUNT), sampling)
    labels = torch.arange(COUNT)
    drawn = generate(model.eval(), labels, noise, sampling).flatten(1)
    learnt = cache.moments(labels, torch.zeros(COUNT).bool())[:, :2].flatten(1)
    assert torch.equal(torch.cdist(drawn, learnt).argmin(dim=1), labels)
    # Of latents with a std of 1: a draw of another class is 1.4 away.
    assert float((drawn - learnt).square().mean().sqrt()) < 0.7


def test_a_sample_that_breaks_the_loss_is_named_and_its_batches_are_skipped(
    tiny_model: MAR, make_cache: Callable[..., LatentCache]
) -> None:
    cache = make_cache(tiny_model.latent, broken=3)
    config = make_config(steps=6, batch_size=2)
    trainer = fresh(tiny_model, config)
    steps = run(trainer, cache, config)
    skipped: list[int] = []
    for step in range(6):
        batch = batch_indices(COUNT, 2, seed=config.seed, step=step).tolist()
        found = broken_samples(trainer, cache, config, step, autocast=nullcontext)
        assert found == (["3"] if 3 in batch else [])
        skipped += [step] if found else []
    assert skipped
    assert [step.index - 1 for step in steps if step.is_skipped] == skipped
    assert steps[-1].values()["skipped_steps"] == len(skipped)
    assert all(value.isfinite().all() for value in state(trainer).values())


# Weights that are given


def given(model: MAR) -> InitialWeights:
    sets = [{n: v + seed for n, v in model.state_dict().items()} for seed in (0.5, 0.25)]
    return InitialWeights(chosen=sets[0], model=sets[1])


def same(model: MAR, weights: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_a_training_and_its_average_begin_with_the_weights_chosen(tiny_model: MAR) -> None:
    weights = given(tiny_model)
    trainer = new_trainer(tiny_model, make_config(), weights)
    assert same(trainer.model, weights.chosen)
    assert same(trainer.ema, weights.chosen)


def test_without_a_step_both_sets_are_there_and_no_latent_is_read(
    tiny_model: MAR, make_cache: Callable[..., LatentCache], tmp_path: Path
) -> None:
    weights, config = given(tiny_model), make_config(steps=0)
    trainer = new_trainer(tiny_model, config, weights)
    assert same(trainer.model, weights.model)
    assert same(trainer.ema, weights.chosen)
    empty = make_cache(tiny_model.latent).info.model_copy(update={"count": 0})
    cache = LatentCache(tmp_path / "nothing", empty)
    assert list(train(trainer, cache, config, micro_batch=4, autocast=nullcontext)) == []
    with pytest.raises(ValueError, match=r"^training\.steps: must be greater than 0 for a gen"):
        new_trainer(tiny_model, config)


def test_what_is_not_given_is_drawn_from_the_seed(tiny_model: MAR) -> None:
    """As a training would draw it that begins with random weights alone."""
    name = "transformer.condition.class_embedding.weight"
    weights, drawn = given(tiny_model), new_trainer(tiny_model, make_config(seed=3)).model
    expected = drawn.state_dict()[name].clone()
    kept = {key: value for key, value in weights.chosen.items() if key != name}
    trainer = new_trainer(tiny_model, make_config(seed=3), InitialWeights(kept, kept))
    for model in (trainer.model, trainer.ema):
        assert torch.equal(model.state_dict()[name], expected)
        assert same(model, {**weights.chosen, name: expected})
    with pytest.raises(ValueError, match=r"^training\.steps: must be greater than 0 for a gen"):
        new_trainer(tiny_model, make_config(steps=0), InitialWeights(kept, kept))


def test_a_training_with_given_weights_resumes_bit_by_bit(
    tiny_model: MAR, cache: LatentCache, tmp_path: Path
) -> None:
    def begin() -> Trainer[MAR]:
        model = MAR(tiny_model.config, tiny_model.latent, COUNT)
        return new_trainer(model, make_config(steps=2), weights)

    other = MAR(tiny_model.config, tiny_model.latent, COUNT)
    other.initialize(torch.Generator().manual_seed(2))
    weights = given(other)
    whole, first, second = begin(), begin(), begin()
    steps = partial(train, cache=cache, config=make_config(steps=2), micro_batch=6)
    list(steps(whole, autocast=nullcontext))
    next(steps(first, autocast=nullcontext))
    hand_over(first, second, tmp_path)
    list(steps(second, autocast=nullcontext))
    assert same(second.model, whole.model.state_dict())
    assert same(second.ema, whole.ema.state_dict())
    assert not same(whole.model, weights.chosen)
