"""The transformer sees the class and the visible tokens, each in its place, and nothing else."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mar.model.mar import MAR
from mar.model.transformer import Transformer, Widths


HIDDEN = [1, 4, 5, 6, 11]
VISIBLE = [0, 2, 3, 7, 8, 9, 10]


@pytest.fixture
def transformer(tiny_model: MAR) -> Transformer:
    assert isinstance(tiny_model.transformer, Transformer)
    return tiny_model.transformer


@pytest.fixture
def tokens(rng: torch.Generator) -> Tensor:
    return torch.randn(2, 12, 8, generator=rng)


@pytest.fixture
def condition(transformer: Transformer) -> Tensor:
    return transformer.condition(torch.tensor([0, 3]), torch.tensor([False, False])).detach()


def positions(*rows: list[int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64)


def test_hidden_tokens_are_invisible(
    transformer: Transformer, tokens: Tensor, condition: Tensor
) -> None:
    tokens.requires_grad_()
    z = transformer(tokens, positions(VISIBLE, VISIBLE), condition)
    for position in (0, 1, 10):
        (gradient,) = torch.autograd.grad(z[0, position].sum(), tokens, retain_graph=True)
        assert (gradient[0].abs().sum(dim=1) != 0).nonzero().flatten().tolist() == VISIBLE
        assert torch.equal(gradient[1], torch.zeros(12, 8))  # of the other sample


def test_each_sample_has_its_own_hidden_tokens(
    transformer: Transformer, tokens: Tensor, condition: Tensor
) -> None:
    visible = positions(VISIBLE[:5], HIDDEN)
    together = transformer(tokens, visible, condition)
    for sample in range(2):
        part = slice(sample, sample + 1)
        alone = transformer(tokens[part], visible[part], condition[part])
        assert torch.allclose(alone, together[part], atol=1e-5)


def test_the_order_in_which_visible_tokens_are_named_does_not_matter(
    transformer: Transformer, tokens: Tensor, condition: Tensor
) -> None:
    ascending = transformer(tokens, positions(VISIBLE, VISIBLE), condition)
    shuffled = transformer(tokens, positions(VISIBLE[::-1], [2, 0, 7, 3, 10, 9, 8]), condition)
    assert torch.allclose(ascending, shuffled, atol=1e-5)


def test_a_token_counts_for_where_it_is(
    transformer: Transformer, tokens: Tensor, condition: Tensor
) -> None:
    swapped = tokens.clone()
    swapped[:, [0, 2]] = tokens[:, [2, 0]]
    visible = positions(VISIBLE, VISIBLE)
    before = transformer(tokens, visible, condition)
    after = transformer(swapped, visible, condition)
    assert not torch.allclose(before[:, HIDDEN], after[:, HIDDEN], atol=1e-3)


def test_without_visible_tokens_the_class_alone_decides(
    transformer: Transformer, tokens: Tensor, condition: Tensor
) -> None:
    none = torch.empty(2, 0, dtype=torch.int64)
    z = transformer(tokens, none, condition)
    assert torch.equal(z, transformer(-tokens, none, condition))
    assert not torch.allclose(z[0], z[1], atol=1e-3)
    assert not torch.allclose(z[0, 0], z[0, 1], atol=1e-3)  # positions differ all the same


def outcome(
    transformer: Transformer, tokens: Tensor, condition: Tensor, *, checkpointing: bool
) -> dict[str, Tensor]:
    """Return z and all gradients of one step in training, with dropout."""
    transformer.train().zero_grad()
    transformer.checkpointing = checkpointing
    torch.manual_seed(7)
    z = transformer(tokens, positions(VISIBLE, VISIBLE), condition)
    z.square().sum().backward()
    gradients = {n: p.grad for n, p in transformer.named_parameters() if p.grad is not None}
    return {"z": z.detach(), **{name: grad.clone() for name, grad in gradients.items()}}


def test_checkpointing_changes_nothing(
    transformer: Transformer, tokens: Tensor, condition: Tensor
) -> None:
    kept = outcome(transformer, tokens, condition, checkpointing=False)
    recomputed = outcome(transformer, tokens, condition, checkpointing=True)
    assert len(kept) > 50
    assert all(torch.equal(kept[name], recomputed[name]) for name in kept)
    assert kept.keys() == recomputed.keys()


def test_checkpointing_recomputes_the_blocks(
    transformer: Transformer, tokens: Tensor, condition: Tensor
) -> None:
    calls: list[str] = []
    for name, block in transformer.encoder_blocks.named_children():
        block.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    outcome(transformer, tokens, condition, checkpointing=False)
    assert calls == ["0", "1"]
    outcome(transformer, tokens, condition, checkpointing=True)
    assert calls[2:] == ["0", "1", "1", "0"]


def test_dropout_acts_in_training_alone(
    transformer: Transformer, tokens: Tensor, condition: Tensor
) -> None:
    def repeats() -> bool:
        visible = positions(VISIBLE, VISIBLE)
        first = transformer(tokens, visible, condition)
        return torch.equal(first, transformer(tokens, visible, condition))

    assert repeats()
    transformer.train()
    assert not repeats()


def test_dropout_is_on_attention_and_on_projections(transformer: Transformer) -> None:
    found = {
        (name.split(".")[-1], module.p)
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Dropout)
    }
    assert found == {(name, 0.1) for name in ("attn_drop", "proj_drop", "drop1", "drop2")}


# Initial weights


def new_transformer(seed: int) -> Transformer:
    widths = Widths(
        encoder_width=48,
        encoder_blocks=1,
        encoder_heads=2,
        decoder_width=64,
        decoder_blocks=1,
        decoder_heads=2,
    )
    sizes: dict[str, Any] = {"channels": 16, "num_tokens": 60, "num_classes": 50}
    transformer = Transformer(widths, **sizes, condition_tokens=4, dropout=0.1)
    transformer.initialize(torch.Generator().manual_seed(seed))
    return transformer


def test_initial_weights_are_those_of_the_table() -> None:
    transformer = new_transformer(0)
    seen: list[nn.Parameter] = []
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear):
            bound = math.sqrt(6 / (module.in_features + module.out_features))
            weight = module.weight.detach()
            assert 0.98 * bound < float(weight.abs().max()) <= bound, name
            assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.1), name
            assert torch.equal(module.bias, torch.zeros_like(module.bias)), name
            seen += [module.weight, module.bias]
        elif isinstance(module, nn.LayerNorm):
            assert torch.equal(module.weight, torch.ones_like(module.weight)), name
            assert torch.equal(module.bias, torch.zeros_like(module.bias)), name
            assert module.eps == 1e-6, name
            seen += [module.weight, module.bias]
    known = {id(parameter) for parameter in seen}
    others = {n: p for n, p in transformer.named_parameters() if id(p) not in known}
    assert sorted(others) == [
        "condition.class_embedding.weight",
        "condition.null_embedding",
        "decoder_position",
        "encoder_position",
        "head_position",
        "mask_token",
    ]
    for name, parameter in others.items():
        tolerance = 4 / math.sqrt(2 * parameter.numel())
        std, mean = float(parameter.detach().std()), float(parameter.detach().mean())
        assert std == pytest.approx(0.02, rel=tolerance), name
        assert abs(mean) < 0.02 * 4 / math.sqrt(parameter.numel()), name


def test_initial_weights_depend_on_the_generator_alone() -> None:
    first = new_transformer(0).state_dict()
    torch.rand(7)
    second, other = new_transformer(0).state_dict(), new_transformer(1).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["mask_token"], other["mask_token"])
