"""A generation's predictor gives the transformer's z, with the work that the formulas say."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.generation import flop_counter
from mar.model.mar import MAR
from mar.model.prediction import BidirectionalPredictor
from mar.model.transformer import Transformer, Widths


BATCH = 3


def new_transformer(
    *, encoder_blocks: int = 2, decoder_blocks: int = 3, width: int = 16
) -> Transformer:
    widths = Widths(
        encoder_width=width,
        encoder_blocks=encoder_blocks,
        encoder_heads=2,
        decoder_width=width + 8,
        decoder_blocks=decoder_blocks,
        decoder_heads=4,
    )
    transformer = Transformer(
        widths, channels=5, num_tokens=12, num_classes=4, condition_tokens=3, dropout=0.1
    )
    rng = torch.Generator().manual_seed(0)
    transformer.initialize(rng)
    for parameter in transformer.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=rng), alpha=0.1)
    return transformer.eval()


def inputs(num_visible: int, num_drawn: int, rng: torch.Generator) -> tuple[Tensor, ...]:
    """Return tokens, visible and drawn positions."""
    orders = torch.rand(BATCH, 12, generator=rng).argsort(dim=1)
    tokens = torch.randn(BATCH, 12, 5, generator=rng)
    return tokens, *orders[:, : num_visible + num_drawn].split([num_visible, num_drawn], dim=1)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(("num_visible", "num_drawn"), [(0, 1), (0, 12), (5, 2), (5, 7), (11, 1)])
@pytest.mark.parametrize("decoder_blocks", [1, 2, 4])
def test_the_predictor_gives_z_of_the_drawn_positions(
    decoder_blocks: int, num_visible: int, num_drawn: int, guided: bool, rng: torch.Generator
) -> None:
    transformer = new_transformer(encoder_blocks=4 // decoder_blocks, decoder_blocks=decoder_blocks)
    tokens, visible, drawn = inputs(num_visible, num_drawn, rng)
    labels = torch.tensor([2, 0, 3])
    given, without = (
        transformer.condition(labels, torch.full((3,), dropped)) for dropped in (False, True)
    )
    predict = BidirectionalPredictor(transformer, given, without[:1] if guided else None)
    found = predict(tokens, visible, drawn)
    expected = [
        transformer(
            tokens, visible, transformer.condition(labels, torch.full((3,), dropped)), drawn
        )
        for dropped in ([False, True] if guided else [False])
    ]
    assert torch.allclose(found, torch.cat(expected), atol=1e-5)
    assert not found.requires_grad


def flops(call: Callable[[], object]) -> int:
    with flop_counter() as counter:
        call()
    return counter.get_total_flops()


def test_it_takes_fewer_products_than_the_forward_pass(rng: torch.Generator) -> None:
    transformer = new_transformer(width=64)
    tokens, visible, drawn = inputs(5, 1, rng)
    twice = [part.repeat(2, *[1] * (part.ndim - 1)) for part in (tokens, visible, drawn)]
    labels = torch.zeros(BATCH, dtype=torch.int64)
    dropped = torch.arange(2 * BATCH) >= BATCH
    condition = transformer.condition(labels.repeat(2), dropped)
    predict = BidirectionalPredictor(transformer, condition[:BATCH], condition[-1:])
    whole = flops(lambda: transformer(twice[0], twice[1], condition, twice[2]))
    assert flops(lambda: predict(tokens, visible, drawn)) < 0.9 * whole
    none = visible[:, :0]
    first = flops(lambda: transformer(twice[0], none.repeat(2, 1), condition, twice[2]))
    assert flops(lambda: predict(tokens, none, drawn)) < 0.6 * first


def test_samples_do_not_see_each_other(tiny_model: MAR, rng: torch.Generator) -> None:
    tokens = torch.randn(2, 12, 8, generator=rng)
    orders = torch.rand(2, 12, generator=rng).argsort(dim=1)
    labels = torch.tensor([1, 2])
    together = tiny_model.predictor(labels, orders, guided=True)(
        tokens, orders[:, :4], orders[:, 4:6]
    )
    for row in range(2):
        part = slice(row, row + 1)
        alone = tiny_model.predictor(labels[part], orders[part], guided=True)(
            tokens[part], orders[part, :4], orders[part, 4:6]
        )
        assert torch.allclose(alone, together[row::2], atol=1e-5)
