"""Against a discriminator a tokenizer trains as before: resumed, cut into parts, and no worse."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hand_over import hand_over
from torch import Tensor, nn

from mar import seeds
from mar.data.batches import batch_indices
from mar.data.images import to_float
from mar.evaluation.classifier import ClassifierConfig, new_classifier
from mar.evaluation.reconstruction_metrics import score
from mar.tokenizer_training import trainer as tokenizer_training
from mar.tokenizer_training.perceptual import ClassifierDistance
from mar.tokenizer_training.steps import train
from mar.tokenizer_training.trainer import TokenizerTrainer, TokenizerTrainingConfig
from mar.tokenizers.codec import reconstruct
from mar.tokenizers.kl import AutoencoderConfig
from mar.tokenizers.pixels import PixelsConfig
from mar.tokenizers.registry import TokenizerConfig, build_tokenizer, load_tokenizer, save_tokenizer
from mar.tokenizers.vq import VQConfig
from mar.training.step import Step


START = 2
SIZES: dict[str, Any] = {
    "latent_channels": 4,
    "base_channels": 8,
    "channel_multipliers": [1, 2],
    "num_res_blocks": 1,
    "encoder_attention": False,
}
KL = AutoencoderConfig(kind="kl", kl_weight=1e-3, **SIZES)
QUANTISED = VQConfig(kind="vq", codebook_size=24, commitment_weight=0.25, revive_dead=True, **SIZES)
ADVERSARIAL: dict[str, Any] = {
    "start_step": START,
    "warmup_steps": 2,
    "weight": 0.5,
    "max_weight": 1e4,
    "lr": 0.002,
    "base_channels": 8,
    "num_layers": 1,
    "regulariser": {"kind": "lecam", "weight": 0.01, "decay": 0.9},
}
CLASSIFIER: dict[str, Any] = {
    "seed": 1,
    "width": 4,
    "feature_width": 4,
    "steps": 1,
    "batch_size": 2,
    "lr": 0.01,
    "weight_decay": 0.0,
    "shift": 0,
    "flip": False,
    "noise": 0.0,
}
PERCEPTUAL = {"kind": "classifier", "weight": 0.1, "classifier": CLASSIFIER}


def make_config(**changes: Any) -> TokenizerTrainingConfig:
    fields: dict[str, Any] = {
        "seed": 0,
        "steps": 5,
        "batch_size": 5,
        "lr": 0.003,
        "lr_schedule": "constant",
        "warmup_steps": 2,
        "beta_1": 0.5,
        "beta_2": 0.9,
        "weight_decay": 0.01,
        "gradient_clip": 1e9,
        "ema_decay": 0.9,
        "curve_steps": 1,
        "preview_steps": 1,
        "flips": True,
        "learned_variance": True,
        "perceptual": PERCEPTUAL,
        "adversarial": ADVERSARIAL,
        **changes,
    }
    return TokenizerTrainingConfig.model_validate(fields)


def gentle(**changes: Any) -> TokenizerTrainingConfig:
    """Return a config without the other new losses."""
    return make_config(**{"learned_variance": False, "perceptual": "none", **changes})


@pytest.fixture
def images(rng: torch.Generator) -> Tensor:
    """Return eight pictures of 8 x 8 pixels, whose quarters have a colour each."""
    colours = torch.randint(256, (8, 3, 2, 2), generator=rng).to(torch.uint8)
    return colours.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)


def fresh(config: TokenizerTrainingConfig, kind: TokenizerConfig = KL) -> TokenizerTrainer:
    torch.rand(3)  # whatever the global generator is at
    network = new_classifier(ClassifierConfig(**CLASSIFIER), image_size=8, num_classes=2)
    distance = None if config.perceptual == "none" else ClassifierDistance(network)
    return tokenizer_training.new_trainer(build_tokenizer(kind), config, distance=distance)


def run(
    trainer: TokenizerTrainer,
    images: Tensor,
    config: TokenizerTrainingConfig,
    *,
    micro_batch: int = 5,
    autocast: Any = nullcontext,
) -> list[Step]:
    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        step = trainer.step
        while True:
            indices = batch_indices(len(images), config.batch_size, seed=config.seed, step=step)
            yield images[indices], indices
            step += 1

    steps = train(trainer, batches(), config, micro_batch=micro_batch, autocast=autocast)
    return list(steps)


def state(trainer: TokenizerTrainer) -> dict[str, Tensor]:
    """Return all numbers that a training has."""
    found: dict[str, Tensor] = {}
    for part, owner in trainer.parts().items():
        values: dict[str, Any] = owner.state_dict()
        found |= {f"{part} {name}": value.clone() for name, value in values.items()}
    return found


def changed(first: dict[str, Tensor], second: dict[str, Tensor]) -> set[str]:
    """Return the parts that differ anywhere."""
    assert first.keys() == second.keys()
    return {name.split()[0] for name in first if not torch.equal(first[name], second[name])}


# Resume


@pytest.mark.parametrize("kind", [KL, QUANTISED], ids=lambda kind: kind.kind)
@pytest.mark.parametrize("stop", [1, START, START + 2])
def test_a_resumed_training_equals_an_undisturbed_one(
    kind: TokenizerConfig, stop: int, images: Tensor, tmp_path: Path
) -> None:
    config = make_config()
    whole, first, second = (fresh(config, kind) for _ in range(3))
    undisturbed = [step.values() for step in run(whole, images, config)]
    before = [step.values() for step in run(first, images, make_config(steps=stop))]
    hand_over(first, second, tmp_path)
    assert changed(state(first), state(second)) == set()
    after = [step.values() for step in run(second, images, config)]
    assert before + after == undisturbed
    assert state(whole).keys() >= {
        "variance log_variance",
        "adversary lecam.means",
        "adversary discriminator.layers.0.weight",
        "adversary_optimizer 0.exp_avg",
    }
    assert changed(state(whole), state(second)) == set()


# The discriminator


def test_the_discriminator_learns_from_its_start_on(images: Tensor) -> None:
    config = make_config(steps=START)
    trainer = fresh(config)
    fresh_state = state(trainer)
    steps = run(trainer, images, config)
    assert changed(fresh_state, state(trainer)) == {"model", "ema", "variance", "optimizer"}
    steps += run(trainer, images, make_config(steps=START + 1))
    learnt = {"adversary", "adversary_optimizer"}
    assert (
        changed(fresh_state, state(trainer)) == {"model", "ema", "variance", "optimizer"} | learnt
    )
    of_the_adversary = {
        "adversarial", "generator_loss", "adaptive_weight", "discriminator_loss",
        "discriminator_accuracy", "discriminator_grad_norm", "logits_real", "logits_fake", "lecam",
    }  # fmt: skip
    before, last = steps[START - 1].values(), steps[START].values()
    assert set(last) - set(before) == of_the_adversary
    assert {"l1", "perceptual", "nll", "log_variance", "kl"} < set(before)


def test_all_of_the_discriminator_learns(images: Tensor) -> None:
    """The last bias does in its second step: at first no logit has reached a margin."""
    config = make_config(steps=START + 2)
    trainer = fresh(config)
    assert trainer.adversary is not None
    before = [value.clone() for value in trainer.adversary.discriminator.parameters()]
    run(trainer, images, config)
    after = trainer.adversary.discriminator.parameters()
    assert not any(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_a_tokenizer_s_file_has_nothing_of_it(images: Tensor, tmp_path: Path) -> None:
    config = make_config(steps=START + 1)
    trainer = fresh(config)
    run(trainer, images, config)
    save_tokenizer(tmp_path / "t.safetensors", trainer.ema)
    plain = build_tokenizer(KL)
    assert load_tokenizer(tmp_path / "t.safetensors").state_dict().keys() == (
        plain.state_dict().keys()
    )


def test_before_its_start_it_changes_nothing(images: Tensor) -> None:
    config, plain = gentle(steps=START), gentle(steps=START, adversarial=None)
    with_it, without = fresh(config), fresh(plain)
    run(with_it, images, config)
    run(without, images, plain)
    first, second = with_it.model.state_dict(), without.model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_at_the_last_layer_its_gradient_is_half_the_reconstruction_s(images: Tensor) -> None:
    """The step is that on error + own terms + 0.5 * adaptive weight * adversarial loss."""
    changes = {**ADVERSARIAL, "start_step": 0, "warmup_steps": 0}
    config = gentle(steps=1, flips=False, adversarial=changes)
    trainer = fresh(config)
    layer = trainer.model.last_layer
    assert layer is not None
    assert trainer.adversary is not None
    before = fresh(config)
    (step,) = run(trainer, images, config, micro_batch=2)
    assert trainer.adversary.config.weight == 0.5
    terms = {name: float(value) for name, value in step.terms.items()}
    assert terms["adversarial"] == pytest.approx(
        0.5 * terms["adaptive_weight"] * terms["generator_loss"]
    )
    assert float(step.loss) == pytest.approx(terms["l1"] + terms["kl"] + terms["adversarial"])
    # The same gradients, from the fresh weights and the whole batch at once.
    found = layer.grad
    error, adversarial = last_gradients(before, images, config)
    assert found is not None
    ratio = float(error.norm() / adversarial.norm())
    assert terms["adaptive_weight"] == pytest.approx(ratio, rel=1e-3)
    assert torch.allclose(found, error + 0.5 * ratio * adversarial, rtol=1e-2, atol=1e-3)


def last_gradients(
    trainer: TokenizerTrainer, images: Tensor, config: TokenizerTrainingConfig
) -> tuple[Tensor, Tensor]:
    """Return the gradients of L1 and of the mean logit in the last layer, for the first batch."""
    chosen = batch_indices(len(images), config.batch_size, seed=config.seed, step=0)
    batch = to_float(images[chosen])
    draws = trainer.model.draw(
        len(batch), (4, 4), seeds.make_rng("tokenizer", config.seed, 0), step=0
    )
    decoded = trainer.model(batch, draws).images
    assert trainer.adversary is not None
    layer = trainer.model.last_layer
    assert layer is not None
    losses = (
        (decoded - batch).abs().flatten(1).sum(dim=1).mean(),
        -trainer.adversary.discriminator(decoded).mean(),
    )
    error, adversarial = (torch.autograd.grad(loss, layer, retain_graph=True)[0] for loss in losses)
    return error, adversarial


# Parts


@pytest.mark.parametrize("kind", [KL, QUANTISED], ids=lambda kind: kind.kind)
@pytest.mark.parametrize("micro_batch", [1, 2])
def test_a_step_does_not_depend_on_the_micro_batch(
    kind: TokenizerConfig, micro_batch: int, images: Tensor
) -> None:
    """The adaptive weight is that of the whole batch, and nothing normalises over images."""
    changes = {**ADVERSARIAL, "start_step": 0, "warmup_steps": 0}
    config = make_config(steps=1, adversarial=changes)
    whole, parts = fresh(config, kind), fresh(config, kind)
    (one,) = run(whole, images, config)
    (other,) = run(parts, images, config, micro_batch=micro_batch)
    assert one.values() == pytest.approx(other.values(), rel=1e-3, abs=1e-5)


def test_bfloat16_leaves_losses_and_weights_in_float32(images: Tensor) -> None:
    def autocast() -> AbstractContextManager[object]:
        return torch.autocast("cpu", dtype=torch.bfloat16)

    config = make_config()
    trainer = fresh(config)
    steps = run(trainer, images, config, micro_batch=2, autocast=autocast)
    exact = run(fresh(config), images, config, micro_batch=2)
    for step in steps:
        assert {value.dtype for value in step.terms.values()} == {torch.float32}
    assert steps[0].values()["nll"] == pytest.approx(exact[0].values()["nll"], rel=0.02)
    assert {value.dtype for value in trainer.model.parameters()} == {torch.float32}
    assert {v.dtype for k, v in state(trainer).items() if "step" not in k} <= {
        torch.float32, torch.int64,
    }  # fmt: skip


# What comes of it


def test_the_variance_learns_at_the_tokenizer_s_rate(images: Tensor) -> None:
    config = make_config(steps=3, warmup_steps=0, adversarial=None, lr=0.01)
    trainer = fresh(config)
    seen = [float(step.terms["log_variance"]) for step in run(trainer, images, config)]
    assert trainer.loss.variance is not None
    seen.append(float(trainer.loss.variance.log_variance.detach()))
    assert seen[0] == 0
    moves = [abs(after - before) for before, after in pairwise(seen)]
    assert moves == pytest.approx([0.01] * 3, rel=0.2)  # Adam's, of a steady gradient


def test_a_divergence_of_the_discriminator_is_noticed(images: Tensor) -> None:
    config = make_config(steps=START + 1)
    trainer = fresh(config)
    run(trainer, images, make_config(steps=START))
    assert trainer.adversary is not None
    last = list(trainer.adversary.discriminator.parameters())[-1]
    nn.init.constant_(last, float("inf"))
    before = [value.clone() for value in trainer.model.parameters()]
    (step,) = run(trainer, images, config)
    assert step.is_skipped
    assert "generator_loss" not in step.values()
    assert all(map(torch.equal, before, trainer.model.parameters()))


def test_a_broken_step_of_the_discriminator_is_skipped(images: Tensor) -> None:
    trainer = fresh(make_config(steps=START + 1))
    run(trainer, images, make_config(steps=START))
    assert trainer.adversary is not None
    before = [value.clone() for value in trainer.adversary.discriminator.parameters()]
    broken = torch.full((2, 3, 8, 8), float("nan"))
    trainer.adversary.discriminator_step(broken, broken, micro_batch=2, autocast=nullcontext)
    assert all(map(torch.equal, before, trainer.adversary.discriminator.parameters()))


@pytest.mark.parametrize("kind", [KL, QUANTISED], ids=lambda kind: kind.kind)
def test_an_adversarial_phase_does_not_break_reconstruction(
    kind: TokenizerConfig, images: Tensor
) -> None:
    """It goes on getting better, and is about as good as without."""
    images = images[:4]
    changes: dict[str, Any] = {
        "batch_size": 4, "lr_schedule": "cosine", "flips": False, "warmup_steps": 5, "steps": 70,
    }  # fmt: skip
    begins = {**ADVERSARIAL, "start_step": 35, "warmup_steps": 5}
    psnr: list[float] = []
    adversarial_steps: list[int] = []
    for adversarial in (begins, None):
        config = gentle(adversarial=adversarial, **changes)
        trainer = fresh(config, kind)
        for stop in (35, 70):
            steps = run(trainer, images, config.model_copy(update={"steps": stop}))
            adversarial_steps += [step.index for step in steps if step.terms.get("adversarial")]
            psnr.append(score([(images, reconstruct(trainer.ema, images))])["psnr"])
    assert adversarial_steps == list(range(36, 71))
    before, after, _, without = psnr
    assert after > before + 1
    assert after > without - 1


def test_what_has_no_weights_needs_no_distance(images: Tensor) -> None:
    config = make_config()
    model = build_tokenizer(PixelsConfig(kind="pixels"))
    assert not tokenizer_training.takes_steps(model, config)
    assert tokenizer_training.takes_steps(build_tokenizer(KL), config)
    assert run(tokenizer_training.new_trainer(model, config), images, config) == []


def test_images_that_are_too_small_for_a_loss_are_refused() -> None:
    lpips = {"kind": "lpips", "weight": 1.0, "weights": None, "weights_sha256": None}
    tokenizer_training.check_size(make_config(perceptual=lpips), 16)
    with pytest.raises(ValueError, match=r"perceptual\.kind: lpips needs .* 16 px, got 8$"):
        tokenizer_training.check_size(make_config(perceptual=lpips), 8)
    with pytest.raises(
        ValueError, match=r"tokenizer_training\.adversarial\.num_layers: a value of 1 needs"
    ):
        tokenizer_training.check_size(make_config(), 5)
    tokenizer_training.check_size(make_config(adversarial=None), 5)
