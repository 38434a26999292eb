"""A step is AdamW's on the clipped mean gradient, and the averaged weights are an exact mean."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mar.training.checkpoints import Checkpoints
from mar.training.optimisation import OptimisationConfig, learning_rate, parameter_groups
from mar.training.step import DivergedError
from mar.training.trainer import MAX_SKIPPED, Trainer


def make_config(**changes: Any) -> OptimisationConfig:
    fields: dict[str, Any] = {
        "seed": 0,
        "steps": 100,
        "batch_size": 4,
        "lr": 0.01,
        "lr_schedule": "constant",
        "warmup_steps": 0,
        "beta_1": 0.9,
        "beta_2": 0.95,
        "weight_decay": 0.5,
        "gradient_clip": 1e9,
        "ema_decay": 0.8,
        "curve_steps": 1,
        "preview_steps": 1,
        **changes,
    }
    return OptimisationConfig.model_validate(fields)


def make_trainer(**changes: Any) -> Trainer:
    torch.manual_seed(0)
    model, config = nn.Linear(3, 2), make_config(**changes)
    return Trainer(model, lambda model: parameter_groups(model, config.weight_decay), config)


def values(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def loss(trainer: Trainer, scale: float = 1.0) -> Tensor:
    """Return a loss whose gradient is `scale` in every parameter."""
    return torch.stack([scale * parameter.sum() for parameter in trainer.model.parameters()]).sum()


def test_the_rate_warms_up_linearly_and_stays() -> None:
    config = make_config(warmup_steps=4)
    rates = [learning_rate(config, step) for step in (0, 1, 2, 3, 4, 50, 99)]
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01, 0.01])


def test_the_rate_falls_along_a_cosine() -> None:
    config = make_config(warmup_steps=20, lr_schedule="cosine")
    rates = [learning_rate(config, step) for step in (19, 20, 40, 60, 80)]
    half = math.sqrt(0.5)
    assert rates == pytest.approx([0.01, 0.01, 0.005 * (1 + half), 0.005, 0.005 * (1 - half)])
    assert 0 < learning_rate(config, 99) < 1e-5


def test_a_training_that_is_all_warm_up_has_rates() -> None:
    config = make_config(steps=4, warmup_steps=4, lr_schedule="cosine")
    assert learning_rate(config, 3) == pytest.approx(0.01)


def test_the_first_step_is_adam_s() -> None:
    """It moves by the rate against the gradient's sign, after the decay of matrices alone."""
    trainer = make_trainer(warmup_steps=2, lr=0.02)
    weight, bias = values(trainer.model)
    step = trainer.update([(loss(trainer, -3.0), {})])
    after = values(trainer.model)
    assert torch.allclose(after[0], weight * (1 - 0.01 * 0.5) + 0.01, atol=1e-6)
    assert torch.allclose(after[1], bias + 0.01, atol=1e-6)
    assert (step.index, step.lr) == (1, 0.01)
    assert float(step.grad_norm) == pytest.approx(3 * math.sqrt(8))


def test_the_gradient_is_clipped_to_its_norm() -> None:
    trainer = make_trainer(gradient_clip=1.0)
    step = trainer.update([(loss(trainer, 5.0), {})])
    gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    assert float(nn.utils.get_total_norm(gradients)) == pytest.approx(1, rel=1e-4)
    assert float(step.grad_norm) == pytest.approx(5 * math.sqrt(8))  # as it was


def test_parts_of_a_batch_add_up_to_one_step() -> None:
    whole, parts = make_trainer(), make_trainer()
    first = whole.update([(loss(whole, 4.0), {"l1": torch.tensor(4.0)})])
    shares = [(loss(parts, s), {"l1": torch.tensor(s)}) for s in (1.0, 0.5, 2.5)]
    second = parts.update(shares)
    for one, other in zip(values(whole.model), values(parts.model), strict=True):
        assert torch.allclose(one, other)
    assert first.values() == pytest.approx(second.values(), rel=1e-5)
    assert float(second.terms["l1"]) == 4


def test_the_average_is_that_of_its_closed_form() -> None:
    trainer = make_trainer()
    expected = values(trainer.model)
    history = [expected]
    for step in range(5):
        trainer.update([(loss(trainer, (-1.0) ** step), {})])
        history.append(values(trainer.model))
    for index, averaged in enumerate(trainer.ema.parameters()):
        start = 0.8**5 * history[0][index]
        rest = sum(0.2 * 0.8 ** (5 - n) * history[n][index] for n in range(1, 6))
        assert torch.allclose(averaged, start + rest, atol=1e-6)
        assert not averaged.requires_grad


def test_a_step_moves_the_average_by_lerp_to_the_last_bit() -> None:
    """Published digests of averaged weights rely on the rounding of this very formula."""
    trainer = make_trainer(ema_decay=0.9999)
    before = values(trainer.ema)
    trainer.update([(loss(trainer), {})])
    for old, new, averaged in zip(before, values(trainer.model), values(trainer.ema), strict=True):
        assert torch.equal(averaged, old.lerp(new, 1 - 0.9999))


def test_a_step_is_one_in_training_mode_and_the_average_stays_out_of_it() -> None:
    trainer = make_trainer()
    trainer.model.eval()
    trainer.update([(loss(trainer), {})])
    assert trainer.model.training
    assert not trainer.ema.training


def test_groups_hold_each_parameter_once() -> None:
    first, norm, second = nn.Linear(3, 4), nn.LayerNorm(4), nn.Conv2d(4, 2, 3)
    model = nn.Sequential(first, norm, second)
    groups = parameter_groups(model, 0.3, without_decay=first.parameters())
    decayed, others = torch.optim.AdamW(groups).param_groups
    assert decayed["params"] == [second.weight]
    ours = [id(parameter) for group in (decayed, others) for parameter in group["params"]]
    assert sorted(ours) == sorted(id(parameter) for parameter in model.parameters())
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_without_a_finite_gradient_is_skipped_and_counted(value: float) -> None:
    trainer, other = make_trainer(), make_trainer()
    steps = [trainer.update([(loss(trainer, scale), {})]) for scale in (1.0, value, -2.0)]
    for scale in (1.0, -2.0):
        other.update([(loss(other, scale), {})])
    for one, expected in zip(values(trainer.model), values(other.model), strict=True):
        assert torch.equal(one, expected)
    assert [step.is_skipped for step in steps] == [False, True, False]
    assert "skipped_steps" not in steps[0].values()
    assert "grad_norm" not in steps[1].values()
    assert steps[1].values()["skipped_steps"] == steps[2].values()["skipped_steps"] == 1
    assert trainer.step == 3


def test_the_square_root_of_zero_is_finite_and_its_slope_is_not() -> None:
    trainer = make_trainer()
    before = values(trainer.model)
    step = trainer.update([((loss(trainer) - loss(trainer).detach()).sqrt(), {})])
    assert step.values()["loss"] == 0
    assert step.is_skipped
    for old, new in zip(before, values(trainer.model), strict=True):
        assert torch.equal(old, new)


def test_many_skipped_steps_in_a_row_are_an_error_that_names_step_and_term() -> None:
    trainer = make_trainer()
    trainer.update([(loss(trainer), {})])
    for _ in range(MAX_SKIPPED):
        step = trainer.update([(loss(trainer, math.nan), {})])
        if trainer.step <= MAX_SKIPPED:
            step.values()
    with pytest.raises(DivergedError, match="training diverged at step 11: loss is nan and grad_"):
        step.values()


def test_a_short_training_of_skipped_steps_alone_is_an_error() -> None:
    trainer = make_trainer(steps=2)
    trainer.update([(loss(trainer, math.nan), {})]).values()
    with pytest.raises(DivergedError, match=r"at step 2: .*, in 2 steps in a row"):
        trainer.update([(loss(trainer, math.nan), {})]).values()


def test_a_saved_training_continues_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"warmup_steps": 4, "lr_schedule": "cosine"}
    whole, first, second = (make_trainer(**changes) for _ in range(3))
    curve = [{"loss": 1.5, "lr": 0.01}]
    for step in range(3):
        whole.update([(loss(whole, step - 2.5), {})])
    whole.update([(loss(whole, math.nan), {})])
    for step in range(3, 6):
        whole.update([(loss(whole, step - 2.5), {})])
    for step in range(3):
        first.update([(loss(first, step - 2.5), {})])
    checkpoints = Checkpoints(tmp_path)
    first.update([(loss(first, math.nan), {})])  # skipped, and counted
    first.save(checkpoints, curve)
    for step in range(3):  # goes on while the copy is written
        first.update([(loss(first, step), {})])
    checkpoints.wait()
    (path,) = checkpoints.paths()
    assert second.load(checkpoints, path) == curve
    assert second.step == 4
    for step in range(3, 6):
        last = second.update([(loss(second, step - 2.5), {})])
    assert last.values()["skipped_steps"] == 1
    for resumed, expected in [(second.model, whole.model), (second.ema, whole.ema)]:
        for one, other in zip(values(resumed), values(expected), strict=True):
            assert torch.equal(one, other)


def test_the_size_of_a_checkpoint_is_that_of_its_tensors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, config = nn.Linear(300, 200), make_config()
    trainer = Trainer(model, lambda each: parameter_groups(each, 0.0), config, widths=[0.05, 0.1])
    trainer.update([(loss(trainer), {})])
    checkpoints = Checkpoints(tmp_path)
    trainer.save(checkpoints, [])
    checkpoints.wait()
    written = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    # The model, three averages and two moments, in 4 bytes; files have heads besides.
    assert trainer.checkpoint_bytes() == pytest.approx(6 * 4 * 60_200, abs=100)
    assert trainer.checkpoint_bytes() == pytest.approx(written, rel=0.05)
