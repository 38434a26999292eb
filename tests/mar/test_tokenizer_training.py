"""A tokenizer's training is a function of its seed alone, goes on where it stopped, and learns."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mar import tokenizer
from mar.autoencoder import AutoencoderConfig, AutoencoderKL
from mar.batches import batch_indices
from mar.optimisation import Step, Trainer
from mar.posterior import Posterior
from mar.reconstruction import reconstruct, score
from mar.tokenizer_training import TokenizerTrainingConfig, loss_terms, new_trainer, train


def make_config(**changes: Any) -> TokenizerTrainingConfig:
    fields: dict[str, Any] = {
        "seed": 0,
        "steps": 4,
        "batch_size": 5,
        "lr": 0.003,
        "lr_schedule": "constant",
        "warmup_steps": 2,
        "beta_1": 0.9,
        "beta_2": 0.95,
        "weight_decay": 0.01,
        "gradient_clip": 1000.0,
        "ema_decay": 0.9,
        "curve_steps": 1,
        "preview_steps": 1,
        "kl_weight": 1e-3,
        "flips": True,
        **changes,
    }
    return TokenizerTrainingConfig.model_validate(fields)


@pytest.fixture
def images(generator: torch.Generator) -> Tensor:
    """Return eight pictures of 8 x 8 pixels, whose quarters have a colour each."""
    colours = torch.randint(256, (8, 3, 2, 2), generator=generator).to(torch.uint8)
    return colours.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)


def fresh(config: TokenizerTrainingConfig) -> Trainer:
    torch.rand(3)  # whatever the global generator is at
    sizes = AutoencoderConfig(
        kind="kl",
        latent_channels=4,
        base_channels=16,
        channel_multipliers=[1, 2],
        num_res_blocks=1,
        encoder_attention=False,
    )
    return new_trainer(tokenizer.build(sizes), config)


def run(
    trainer: Trainer, images: Tensor, config: TokenizerTrainingConfig, *, micro_batch: int = 5
) -> list[Step]:
    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        step = trainer.step
        while True:
            indices = batch_indices(len(images), config.batch_size, seed=config.seed, step=step)
            yield images[indices], indices
            step += 1

    steps = train(trainer, batches(), config, micro_batch=micro_batch, autocast=nullcontext)
    return list(steps)


def state(trainer: Trainer) -> dict[str, Tensor]:
    """Return all numbers that a training has."""
    moments = trainer.optimizer.state_dict()["state"]
    optimizer = {f"{i} {key}": value for i, part in moments.items() for key, value in part.items()}
    ema = {f"ema {name}": value for name, value in trainer.ema.state_dict().items()}
    return {**trainer.model.state_dict(), **ema, **optimizer}


def assert_same_state(first: Trainer, second: Trainer) -> None:
    one, other = state(first), state(second)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_a_resumed_training_equals_an_undisturbed_one(images: Tensor, tmp_path: Path) -> None:
    config = make_config()
    whole, first, second = (fresh(config) for _ in range(3))
    losses = [float(step.loss) for step in run(whole, images, config)]
    before = [float(step.loss) for step in run(first, images, make_config(steps=2))]
    first.save(tmp_path / "state.pt", [])
    second.load(tmp_path / "state.pt")
    after = [float(step.loss) for step in run(second, images, config)]
    assert before + after == losses
    assert_same_state(whole, second)


def test_a_training_depends_on_its_seed_alone(images: Tensor) -> None:
    trainers: list[Trainer] = []
    for seed in (1, 1, 2):
        config = make_config(seed=seed, steps=2)
        trainers.append(fresh(config))
        run(trainers[-1], images, config)
    first, second, other = trainers
    assert_same_state(first, second)
    name = "quant_conv.weight"
    assert not torch.equal(first.model.state_dict()[name], other.model.state_dict()[name])


def test_each_seed_and_step_has_noise_of_its_own(images: Tensor) -> None:
    """With weights that stay and images that are alike, nothing else tells losses apart."""
    losses: list[float] = []
    for seed in (0, 1):
        trainer = fresh(make_config())  # of the same weights
        config = make_config(seed=seed, steps=3, lr=1e-30, flips=False)
        trainer.config = config
        losses += [
            float(step.loss) for step in run(trainer, images[:1].expand(8, -1, -1, -1), config)
        ]
    assert len(set(losses)) == 6


def test_the_terms_are_sums_over_an_image(generator: torch.Generator) -> None:
    images, reconstruction = torch.randn(2, 3, 3, 4, 4, generator=generator)
    posterior = Posterior.of(torch.randn(3, 4, 2, 2, generator=generator))
    terms = loss_terms(images, reconstruction, posterior, make_config(kl_weight=0.5))
    l1 = (images - reconstruction).abs().mean() * 3 * 4 * 4
    assert terms.keys() == {"l1", "kl"}
    assert torch.allclose(terms["l1"], l1)
    assert torch.allclose(terms["kl"], 0.5 * posterior.kl().mean())


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_parts_of_a_batch_count_by_their_share(images: Tensor, micro_batch: int) -> None:
    """The KL term is free of noise, so it is the same however the batch is cut."""
    config = make_config(steps=1)
    (whole,) = run(fresh(config), images, config)
    (parts,) = run(fresh(config), images, config, micro_batch=micro_batch)
    assert torch.allclose(whole.terms["kl"], parts.terms["kl"], rtol=1e-4)
    for step in (whole, parts):
        assert torch.allclose(step.loss, step.terms["l1"] + step.terms["kl"])


def test_images_are_mirrored_at_random(images: Tensor) -> None:
    """The first KL term tells which image the untrained tokenizer was given: it has no noise."""

    def first_kl(image: Tensor, seed: int, *, flips: bool) -> float:
        # The weights are those of one seed, the choice that of another.
        config = make_config(steps=1, batch_size=1, kl_weight=1.0, flips=flips)
        chosen = make_config(**{**config.model_dump(), "seed": seed})
        trainer = fresh(config)
        (step,) = run(trainer, image[None], chosen)
        return round(float(step.terms["kl"]), 3)

    plain = first_kl(images[0], 0, flips=False)
    mirrored = first_kl(images[0].flip(2), 0, flips=False)
    drawn = [first_kl(images[0], seed, flips=True) for seed in range(16)]
    assert plain != mirrored
    assert set(drawn) == {plain, mirrored}


def test_a_tiny_autoencoder_learns_four_images_by_heart(images: Tensor) -> None:
    images = images[:4]
    config = make_config(
        steps=100, batch_size=4, lr_schedule="cosine", kl_weight=1e-4, flips=False, warmup_steps=5
    )
    trainer = fresh(config)
    assert isinstance(trainer.ema, AutoencoderKL)
    before = score([(images, reconstruct(trainer.ema, images))])["psnr"]
    run(trainer, images, config)
    after = score([(images, reconstruct(trainer.ema, images))])["psnr"]
    assert before < 12
    assert after > 20


def test_a_step_does_not_depend_on_the_micro_batch(images: Tensor) -> None:
    config = make_config(steps=1)
    whole, parts = fresh(config), fresh(config)
    one, other = (
        run(trainer, images, config, micro_batch=size)[0].values()
        for trainer, size in ((whole, 5), (parts, 2))
    )
    assert one == pytest.approx(other, rel=1e-4)
