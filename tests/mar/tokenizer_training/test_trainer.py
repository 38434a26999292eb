"""A tokenizer's training is a function of its seed alone, goes on where it stopped, and learns."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hand_over import hand_over
from torch import Tensor

from mar.data.batches import batch_indices
from mar.evaluation.reconstruction_metrics import score
from mar.latents.posterior import Posterior
from mar.tokenizer_training.steps import train
from mar.tokenizer_training.trainer import (
    TokenizerTrainer,
    TokenizerTrainingConfig,
    new_trainer,
)
from mar.tokenizers.codebook import DEAD_AFTER, Codebook
from mar.tokenizers.codec import reconstruct
from mar.tokenizers.detok import DeTokConfig, StackSize
from mar.tokenizers.kl import AutoencoderConfig
from mar.tokenizers.pixels import PixelsConfig
from mar.tokenizers.registry import TokenizerConfig, build_tokenizer
from mar.tokenizers.vq import VQ, VQConfig
from mar.training.step import Step


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
        "flips": True,
        "learned_variance": False,
        "perceptual": "none",
        "adversarial": None,
        **changes,
    }
    return TokenizerTrainingConfig.model_validate(fields)


@pytest.fixture
def images(rng: torch.Generator) -> Tensor:
    """Return eight pictures of 8 x 8 pixels, whose quarters have a colour each."""
    colours = torch.randint(256, (8, 3, 2, 2), generator=rng).to(torch.uint8)
    return colours.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)


def kl(kl_weight: float = 1e-3) -> AutoencoderConfig:
    return AutoencoderConfig(
        kind="kl",
        latent_channels=4,
        base_channels=16,
        channel_multipliers=[1, 2],
        num_res_blocks=1,
        encoder_attention=False,
        kl_weight=kl_weight,
    )


def vq(codebook_size: int = 24, *, revive_dead: bool = True) -> VQConfig:
    return VQConfig(
        kind="vq",
        latent_channels=4,
        base_channels=16,
        channel_multipliers=[1, 2],
        num_res_blocks=1,
        encoder_attention=False,
        codebook_size=codebook_size,
        commitment_weight=0.25,
        revive_dead=revive_dead,
    )


def detok(decoder_from_step: int | None = 3, *, width: int = 16) -> DeTokConfig:
    return DeTokConfig(
        kind="detok",
        latent_channels=4,
        patch_size=2,
        grid=4,
        encoder=StackSize(width=width, blocks=1, heads=2),
        decoder=StackSize(width=width, blocks=1, heads=2),
        noise_std=3.0,
        drop_ratio_max=0.7,
        kl_weight=1e-3,
        decoder_from_step=decoder_from_step,
    )


KINDS = pytest.mark.parametrize("sizes", [kl(), vq(), detok()], ids=["kl", "vq", "detok"])


def fresh(
    config: TokenizerTrainingConfig, sizes: TokenizerConfig | None = None
) -> TokenizerTrainer:
    torch.rand(3)  # whatever the global generator is at
    return new_trainer(build_tokenizer(sizes or kl()), config)


def run(
    trainer: TokenizerTrainer,
    images: Tensor,
    config: TokenizerTrainingConfig,
    *,
    micro_batch: int = 5,
) -> list[Step]:
    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        step = trainer.step
        while True:
            indices = batch_indices(len(images), config.batch_size, seed=config.seed, step=step)
            yield images[indices], indices
            step += 1

    steps = train(trainer, batches(), config, micro_batch=micro_batch, autocast=nullcontext)
    return list(steps)


def state(trainer: TokenizerTrainer) -> dict[str, Tensor]:
    """Return all numbers that a training has."""
    moments = trainer.optimizer.state_dict()["state"]
    optimizer = {f"{i} {key}": value for i, part in moments.items() for key, value in part.items()}
    ema = {f"ema {name}": value for name, value in trainer.ema.state_dict().items()}
    return {**trainer.model.state_dict(), **ema, **optimizer}


def assert_same_state(first: TokenizerTrainer, second: TokenizerTrainer) -> None:
    one, other = state(first), state(second)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@KINDS
def test_a_resumed_training_equals_an_undisturbed_one(
    sizes: TokenizerConfig, images: Tensor, tmp_path: Path
) -> None:
    config = make_config()
    whole, first, second = (fresh(config, sizes) for _ in range(3))
    losses = [float(step.loss) for step in run(whole, images, config)]
    before = [float(step.loss) for step in run(first, images, make_config(steps=2))]
    hand_over(first, second, tmp_path)
    after = [float(step.loss) for step in run(second, images, config)]
    assert before + after == losses
    assert_same_state(whole, second)


@KINDS
def test_a_training_depends_on_its_seed_alone(sizes: TokenizerConfig, images: Tensor) -> None:
    trainers: list[TokenizerTrainer] = []
    for seed in (1, 1, 2):
        config = make_config(seed=seed, steps=2)
        trainers.append(fresh(config, sizes))
        run(trainers[-1], images, config)
    first, second, other = trainers
    assert_same_state(first, second)
    name = "decoder.conv_out.weight"
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


def test_the_kl_term_is_the_weighted_divergence(images: Tensor, rng: torch.Generator) -> None:
    model = build_tokenizer(kl(kl_weight=0.5))
    model.initialize(rng)
    eps = torch.randn(8, 4, 4, 4, generator=rng)
    reconstruction = model(images.float() / 255, (eps,))
    posterior = Posterior.of(model.encode(images.float() / 255), 4)
    assert torch.allclose(reconstruction.terms["kl"], 0.5 * posterior.kl().mean())
    assert torch.allclose(reconstruction.images, model.decode(posterior.sample(eps)), atol=1e-5)
    assert reconstruction.codes is None


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
        config = make_config(steps=1, batch_size=1, flips=flips)
        chosen = make_config(**{**config.model_dump(), "seed": seed})
        trainer = fresh(config, kl(kl_weight=1.0))
        (step,) = run(trainer, image[None], chosen)
        return round(float(step.terms["kl"]), 3)

    plain = first_kl(images[0], 0, flips=False)
    mirrored = first_kl(images[0].flip(2), 0, flips=False)
    drawn = [first_kl(images[0], seed, flips=True) for seed in range(16)]
    assert plain != mirrored
    assert set(drawn) == {plain, mirrored}


@pytest.mark.parametrize("sizes", [kl(kl_weight=1e-4), vq()], ids=["kl", "vq"])
def test_a_tiny_autoencoder_learns_four_images_by_heart(
    sizes: TokenizerConfig, images: Tensor
) -> None:
    images = images[:4]
    config = make_config(steps=100, batch_size=4, lr_schedule="cosine", flips=False, warmup_steps=5)
    trainer = fresh(config, sizes)
    before = score([(images, reconstruct(trainer.ema, images))])["psnr"]
    run(trainer, images, config)
    after = score([(images, reconstruct(trainer.ema, images))])["psnr"]
    assert after > before + 4  # dB


@KINDS
def test_a_step_does_not_depend_on_the_micro_batch(sizes: TokenizerConfig, images: Tensor) -> None:
    config = make_config(steps=1)
    whole, parts = fresh(config, sizes), fresh(config, sizes)
    one, other = (
        run(trainer, images, config, micro_batch=size)[0].values()
        for trainer, size in ((whole, 5), (parts, 2))
    )
    assert one == pytest.approx(other, rel=1e-4)


# Codebooks


def codebook(trainer: TokenizerTrainer) -> Codebook:
    assert isinstance(trainer.model, VQ)
    return trainer.model.quantize


def test_the_use_of_codes_is_measured_and_not_minimised(images: Tensor) -> None:
    config = make_config(steps=2)
    for step in run(fresh(config, vq()), images, config):
        assert step.terms.keys() == {
            "l1", "codebook", "commitment", "codebook_use", "perplexity",
        }  # fmt: skip
        minimised = step.terms["l1"] + step.terms["codebook"] + step.terms["commitment"]
        assert torch.allclose(step.loss, minimised)
        assert torch.allclose(0.25 * step.terms["codebook"], step.terms["commitment"], rtol=1e-4)
        assert 1 <= float(step.terms["perplexity"]) <= 24 * float(step.terms["codebook_use"]) + 1e-3


def test_revived_codes_survive_a_checkpoint_bit_for_bit(images: Tensor, tmp_path: Path) -> None:
    """Codes die between the checkpoint and the end, by what was counted on both sides of it."""
    config = make_config(steps=6)
    whole, first, second = (fresh(config, vq(codebook_size=200)) for _ in range(3))
    for trainer in (whole, first):  # no code is dead yet, but soon
        codebook(trainer).unused_steps.fill_(DEAD_AFTER - 5)
    initial = codebook(whole).embedding.weight.detach().clone()
    run(whole, images, config)
    run(first, images, make_config(steps=3))
    unused = codebook(first).unused_steps
    assert int(unused.max()) == DEAD_AFTER - 2
    hand_over(first, second, tmp_path)
    run(second, images, config)
    assert_same_state(whole, second)
    moved = (codebook(whole).embedding.weight.detach() - initial).abs().amax(dim=1)
    assert float(moved.median()) > 0.1  # further than six steps go: most were revived


def test_revival_brings_a_codebook_into_use(images: Tensor) -> None:
    config = make_config(steps=30, batch_size=8, flips=False)
    use: list[float] = []
    for revive_dead in (False, True):
        trainer = fresh(config, vq(codebook_size=16, revive_dead=revive_dead))
        last = run(trainer, images, config, micro_batch=8)[-1]
        use.append(float(last.terms["perplexity"]))
    assert use[1] > use[0]


def test_a_trained_codebook_is_averaged(images: Tensor) -> None:
    config = make_config(steps=3, ema_decay=0.5)
    trainer = fresh(config, vq(revive_dead=False))
    before = trainer.ema.state_dict()["quantize.embedding.weight"].clone()
    run(trainer, images, config)
    assert isinstance(trainer.ema, VQ)
    assert not torch.equal(trainer.ema.quantize.embedding.weight, before)


def test_weight_decay_leaves_the_codes_where_latents_put_them(images: Tensor) -> None:
    trainer = fresh(make_config(weight_decay=0.5), vq(revive_dead=False))
    assert isinstance(trainer.model, VQ)
    codes = trainer.model.quantize.embedding.weight
    decay = {
        group["weight_decay"]
        for group in trainer.optimizer.param_groups
        if any(parameter is codes for parameter in group["params"])
    }
    assert decay == {0.0}


# l-DeTok


def test_a_frozen_encoder_stays_bit_for_bit_while_the_decoder_goes_on(images: Tensor) -> None:
    """In spite of weight decay, moments of earlier gradients, and an average that follows."""
    config = make_config(steps=6, weight_decay=0.5)
    trainer = fresh(config, detok(decoder_from_step=3))
    run(trainer, images, make_config(steps=3, weight_decay=0.5))
    model, ema = (
        {name: value.clone() for name, value in part.state_dict().items()}
        for part in (trainer.model, trainer.ema)
    )
    steps = run(trainer, images, config)
    assert all(torch.isfinite(step.terms["kl"]) for step in steps)
    changed = {n for n, v in trainer.model.state_dict().items() if not torch.equal(v, model[n])}
    decoder = {name for name in model if name.startswith("decoder.")}
    assert changed == decoder - {"decoder.mask_token"}
    averaged = trainer.ema.state_dict()
    assert all(not torch.equal(averaged[name], ema[name]) for name in changed)
    for name in model.keys() - changed:  # the average nears what it is an average of
        before, after = ((part[name] - model[name]).norm() for part in (ema, averaged))
        assert float(after) == pytest.approx(0.9**3 * float(before), rel=1e-3), name


@pytest.mark.parametrize("stop", [2, 4])
def test_a_resumed_tuning_equals_an_undisturbed_one(
    stop: int, images: Tensor, tmp_path: Path
) -> None:
    """The checkpoint is from before the encoder is frozen, and from after."""
    config = make_config(steps=6)
    whole, first, second = (fresh(config, detok(decoder_from_step=3)) for _ in range(3))
    run(whole, images, config)
    run(first, images, make_config(steps=stop))
    hand_over(first, second, tmp_path)
    run(second, images, config)
    assert_same_state(whole, second)


def test_a_tiny_transformer_learns_eight_images_through_corruption(images: Tensor) -> None:
    config = make_config(
        steps=300, batch_size=8, lr_schedule="cosine", flips=False, warmup_steps=20, beta_2=0.99
    )
    trainer = fresh(config, detok(decoder_from_step=200, width=32))
    before = score([(images, reconstruct(trainer.ema, images))])["psnr"]
    run(trainer, images, config, micro_batch=8)
    after = score([(images, reconstruct(trainer.ema, images))])["psnr"]
    assert after > before + 4  # dB


# Given weights


def test_a_training_begins_with_the_weights_that_are_given(images: Tensor) -> None:
    model = build_tokenizer(kl())
    model.initialize(torch.Generator().manual_seed(7))
    config = make_config(steps=0)
    trainer = new_trainer(build_tokenizer(kl()), config, model.state_dict())
    assert run(trainer, images, config) == []
    for part in (trainer.model, trainer.ema):
        assert all(torch.equal(v, model.state_dict()[n]) for n, v in part.state_dict().items())
    further = make_config(steps=1)
    (step,) = run(trainer, images, further)
    assert step.index == 1
    name = "encoder.conv_in.weight"
    assert not torch.equal(trainer.model.state_dict()[name], model.state_dict()[name])


def test_random_weights_are_not_taken_as_they_are() -> None:
    expected = r"tokenizer_training\.steps: must be greater than 0 for a tokenizer that begins with"
    with pytest.raises(ValueError, match=expected):
        fresh(make_config(steps=0))


# Pixels


def test_what_has_no_weights_takes_no_steps(images: Tensor) -> None:
    config = make_config()
    trainer = fresh(config, PixelsConfig(kind="pixels"))
    assert run(trainer, images, config) == []
    assert trainer.step == 0
    assert torch.equal(reconstruct(trainer.ema, images), images)


def test_given_weights_are_used_as_they_are(images: Tensor) -> None:
    config = make_config(steps=0)
    model = build_tokenizer(kl())
    weights = {name: torch.full_like(value, 0.5) for name, value in model.state_dict().items()}
    trainer = new_trainer(model, config, weights)
    assert run(trainer, images, config) == []
    for found in (trainer.model.state_dict(), trainer.ema.state_dict()):
        assert all(torch.equal(found[name], value) for name, value in weights.items())
    with pytest.raises(ValueError, match=r"^tokenizer_training\.steps: must be greater than 0 for"):
        new_trainer(model, config)
