"""The causal transformer predicts each token from the class and the tokens before it, as cached."""

from functools import partial

import pytest
import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mar.model.causal import Cache, CausalBlock, CausalPredictor, CausalTransformer
from mar.model.masking import expand_index, sample_orders
from mar.model.transformer import Transformer, Widths, blocks


NUM_TOKENS, CHANNELS, CLASSES, SLOTS, WIDTH = 12, 8, 5, 3, 16
RASTER = torch.arange(NUM_TOKENS).expand(2, -1)
RANDOM = sample_orders(2, NUM_TOKENS, torch.Generator().manual_seed(2))


def widths(**changes: int) -> Widths:
    sizes = {
        "encoder_width": WIDTH,
        "encoder_blocks": 2,
        "encoder_heads": 2,
        "decoder_width": WIDTH,
        "decoder_blocks": 2,
        "decoder_heads": 2,
    }
    return Widths(**(sizes | changes))


def move(module: nn.Module, rng: torch.Generator) -> None:
    """Move all weights from zero and one, behind which a fault could hide."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=0.1)


def new_transformer(*, next_position: bool) -> CausalTransformer:
    transformer = CausalTransformer(
        widths(),
        channels=CHANNELS,
        num_tokens=NUM_TOKENS,
        num_classes=CLASSES,
        condition_tokens=SLOTS,
        dropout=0.1,
        next_position=next_position,
    )
    rng = torch.Generator().manual_seed(1)
    transformer.initialize(rng)
    move(transformer, rng)
    return transformer.eval()


@pytest.fixture(params=[False, True], ids=["plain", "next_position"])
def transformer(request: pytest.FixtureRequest) -> CausalTransformer:
    return new_transformer(next_position=request.param)


@pytest.fixture
def tokens(rng: torch.Generator) -> Tensor:
    return torch.randn(2, NUM_TOKENS, CHANNELS, generator=rng)


@pytest.fixture
def condition(rng: torch.Generator) -> Tensor:
    return torch.randn(2, SLOTS, WIDTH, generator=rng)


# What a place sees


def rows(gradient: Tensor) -> set[int]:
    return set((gradient.abs().sum(dim=-1) != 0).nonzero().flatten().tolist())


@pytest.mark.parametrize("sequence", [RASTER, RANDOM], ids=["raster", "random"])
def test_a_place_sees_the_class_and_the_tokens_before_it_alone(
    transformer: CausalTransformer, tokens: Tensor, condition: Tensor, sequence: Tensor
) -> None:
    tokens.requires_grad_()
    condition.requires_grad_()
    z = transformer(tokens, sequence, condition)
    for sample, order in enumerate(sequence.tolist()):
        for place, position in enumerate(order):
            by_token, by_class = torch.autograd.grad(
                z[sample, position].sum(), [tokens, condition], retain_graph=True
            )
            assert rows(by_token[sample]) == set(order[:place])
            assert rows(by_token[1 - sample]) == set()
            assert rows(by_class.flatten(1)) == {sample}


def test_places_know_the_unshuffled_positions_of_what_they_see_and_of_what_they_predict(
    tokens: Tensor, condition: Tensor
) -> None:
    transformer = new_transformer(next_position=True)
    assert transformer.next_position is not None
    z = transformer(tokens, RANDOM, condition)
    parameters = [transformer.position, transformer.next_position, transformer.head_position]
    for place, position in enumerate(RANDOM[1].tolist()):
        seen, told, own = torch.autograd.grad(z[1, position].sum(), parameters, retain_graph=True)
        past = RANDOM[1, :place].tolist()
        assert rows(seen[0]) == {*range(SLOTS), *(SLOTS + other for other in past)}
        assert rows(told[0]) == {*past, position}
        assert rows(own[0]) == {position}


def test_samples_do_not_depend_on_each_other(
    transformer: CausalTransformer, tokens: Tensor, condition: Tensor
) -> None:
    together = transformer(tokens, RANDOM, condition)
    exchanged = transformer(tokens.flip(0), RANDOM.flip(0), condition.flip(0))
    assert torch.allclose(exchanged.flip(0), together, atol=1e-6)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


# The position of the token to predict


def test_only_next_position_tells_which_token_to_predict(
    transformer: CausalTransformer, tokens: Tensor, condition: Tensor
) -> None:
    place = 5
    other = RANDOM.clone()
    other[:, [place, place + 1]] = RANDOM[:, [place + 1, place]]
    z = transformer(tokens, RANDOM, condition) - transformer.head_position
    z_other = transformer(tokens, other, condition) - transformer.head_position
    for sample in range(2):
        first = z[sample, RANDOM[sample, place]]
        second = z_other[sample, other[sample, place]]
        same = torch.allclose(first, second, atol=1e-6)
        assert same == (transformer.next_position is None)


def test_next_position_enters_at_the_second_half_of_the_stack(
    tokens: Tensor, condition: Tensor
) -> None:
    transformer = new_transformer(next_position=True)
    inputs: list[Tensor] = []
    for block in transformer.blocks:
        assert isinstance(block, Block)
        block.norm1.register_forward_pre_hook(lambda _, x: inputs.append(x[0]))
    for last in (3, 7):
        prefix = torch.tensor([[0, 5, last], [11, 4, last]])
        transformer.predict(tokens, prefix, condition)
    first, second = inputs[:4], inputs[4:]
    assert [torch.equal(*pair) for pair in zip(first, second, strict=True)] == [
        True,
        True,
        False,
        False,
    ]
    assert torch.equal(first[2][:, :-1], second[2][:, :-1])  # at the last place alone
    assert not torch.equal(first[2][:, -1], second[2][:, -1])


# Generation


def step_by_step(predict: CausalPredictor, tokens: Tensor, sequence: Tensor) -> Tensor:
    """Return z by position; each token exists only after it was drawn."""
    known = torch.full_like(tokens, torch.nan)
    z = torch.full((*sequence.shape, WIDTH), torch.nan)
    for place in range(sequence.shape[1]):
        visible = sequence[:, :place].sort(dim=1).values
        drawn = sequence[:, place : place + 1]
        z = z.scatter(1, expand_index(drawn, WIDTH), predict(known, visible, drawn))
        token = tokens.gather(1, expand_index(drawn, CHANNELS))
        known = known.scatter(1, expand_index(drawn, CHANNELS), token)
    return z


@pytest.mark.parametrize("sequence", [RASTER, RANDOM], ids=["raster", "random"])
@pytest.mark.parametrize("cached", [False, True], ids=["uncached", "cached"])
def test_generation_step_by_step_is_the_forward_pass(
    transformer: CausalTransformer,
    tokens: Tensor,
    condition: Tensor,
    sequence: Tensor,
    cached: bool,
) -> None:
    z = transformer(tokens, sequence, condition).detach()
    predict = transformer.predictor(condition, sequence, cached=cached)
    found = step_by_step(predict, tokens, sequence)
    assert float((found - z).norm() / z.norm()) < 1e-5
    assert not found.requires_grad


def test_the_cache_is_the_default(transformer: CausalTransformer, condition: Tensor) -> None:
    assert transformer.predictor(condition, RANDOM).caches is not None


def test_a_cached_call_computes_one_place_in_buffers_made_once(
    transformer: CausalTransformer, tokens: Tensor, condition: Tensor
) -> None:
    lengths: list[int] = []
    for block in transformer.blocks:
        assert isinstance(block, Block)
        block.norm1.register_forward_pre_hook(lambda _, x: lengths.append(x[0].shape[1]))
    predict = transformer.predictor(condition, RANDOM)
    predict(tokens, RANDOM[:, :0], RANDOM[:, :1])
    assert lengths == 4 * [SLOTS]
    assert predict.caches is not None
    made = [buffer for cache in predict.caches for buffer in cache.buffers or ()]
    assert [buffer.shape for buffer in made] == 8 * [(2, 2, SLOTS + NUM_TOKENS - 1, WIDTH // 2)]
    for place in range(1, NUM_TOKENS):
        predict(tokens, RANDOM[:, :place], RANDOM[:, place : place + 1])
    assert lengths[4:] == 4 * (NUM_TOKENS - 1) * [1]
    kept = [buffer for cache in predict.caches for buffer in cache.buffers or ()]
    assert [id(buffer) for buffer in kept] == [id(buffer) for buffer in made]
    assert all(bool(buffer.isfinite().all()) for buffer in kept)


@pytest.mark.parametrize("cached", [False, True], ids=["uncached", "cached"])
def test_no_step_asks_a_device_for_numbers(
    transformer: CausalTransformer, tokens: Tensor, condition: Tensor, cached: bool
) -> None:
    """The meta device has none: whatever asked for them would fail."""
    sequence = RANDOM.to("meta")
    predict = transformer.to("meta").predictor(condition.to("meta"), sequence, cached=cached)
    for place in range(NUM_TOKENS):
        z = predict(tokens.to("meta"), sequence[:, :place], sequence[:, place : place + 1])
        assert z.shape == (2, 1, WIDTH)
    predict = transformer.predictor(condition.to("meta"), sequence, cached=cached)
    with pytest.raises(ValueError, match="step 0 of causal generation must draw token 0"):
        predict(tokens.to("meta"), sequence[:, :1], sequence[:, 1:2])


@pytest.mark.parametrize("cached", [False, True], ids=["uncached", "cached"])
def test_other_calls_than_the_next_are_refused_without_a_trace(
    transformer: CausalTransformer, tokens: Tensor, condition: Tensor, cached: bool
) -> None:
    predict = transformer.predictor(condition, RANDOM, cached=cached)
    call = partial(predict, tokens)

    def refused(visible: Tensor, drawn: Tensor) -> None:
        with pytest.raises(
            ValueError, match=f"step {predict.num_calls} of causal generation must draw token"
        ):
            call(visible, drawn)

    for place in range(3):
        call(RANDOM[:, :place], RANDOM[:, place : place + 1])
    with pytest.raises(ValueError, match="draws 1 token a step, got 2"):
        call(RANDOM[:, :3], RANDOM[:, 3:5])
    with pytest.raises(ValueError, match="draws 1 token a step, got 0"):
        call(RANDOM[:, :3], RANDOM[:, 3:3])
    refused(RANDOM[:, :2], RANDOM[:, 2:3])  # again
    refused(RANDOM[:, :4], RANDOM[:, 4:5])  # one left out
    refused(RANDOM[:, :3], RANDOM[:, 4:5])  # another drawn
    refused(RANDOM[:, :3], RANDOM.flip(0)[:, 3:4])  # the other sample's
    refused(RANDOM[:, 1:4], RANDOM[:, 3:4])  # others visible
    z = transformer(tokens, RANDOM, condition)
    for place in range(3, NUM_TOKENS):
        drawn = RANDOM[:, place : place + 1]
        found = call(RANDOM[:, :place], drawn)
        assert torch.allclose(found, z.gather(1, expand_index(drawn, WIDTH)), atol=1e-5)
    refused(RANDOM, RANDOM[:, :1])


# Blocks


@pytest.fixture
def block(rng: torch.Generator) -> CausalBlock:
    (block,) = blocks(WIDTH, 1, 2, 0.4, CausalBlock)
    assert isinstance(block, CausalBlock)
    move(block, rng)
    return block.eval()


def masked(block: CausalBlock, x: Tensor, **masks: object) -> Tensor:
    """Apply timm's block with the weights and dropouts of ours."""
    return Block.forward(block, x, **masks)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def x(rng: torch.Generator) -> Tensor:
    return torch.randn(2, 7, WIDTH, generator=rng)


def test_a_causal_block_is_the_block_under_a_triangular_mask(block: CausalBlock, x: Tensor) -> None:
    found = block(x)
    triangle = torch.ones(7, 7, dtype=torch.bool).tril()
    assert torch.allclose(found, masked(block, x, attn_mask=triangle), atol=1e-6)
    # And without the block's own masks: each place is the last of a block that sees all its input.
    prefixes = [masked(block, x[:, : place + 1])[:, -1] for place in range(7)]
    assert torch.allclose(found, torch.stack(prefixes, dim=1), atol=1e-6)


def test_a_causal_block_goes_on_from_its_cache(block: CausalBlock, x: Tensor) -> None:
    cache = Cache(7)
    parts = [block(part, cache) for part in x.split([4, 1, 1, 1], dim=1)]
    assert torch.allclose(torch.cat(parts, dim=1), block(x), atol=1e-6)


def test_dropout_is_the_blocks_own(block: CausalBlock, x: Tensor) -> None:
    assert isinstance(block.attn, Attention)
    for module in block.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0

    def twice() -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        ours = block(x)
        torch.manual_seed(0)
        return ours, masked(block, x, is_causal=True)

    without = block(x)
    for module in (block.attn.attn_drop, block.attn.proj_drop, block.mlp.drop1, block.mlp.drop2):
        assert isinstance(module, nn.Dropout)
        module.p = 0.4
        block.train()
        ours, own = twice()
        assert torch.allclose(ours, own, atol=1e-6)
        assert not torch.allclose(ours, without, atol=1e-3)
        block.eval()
        assert torch.equal(twice()[0], without)
        module.p = 0.0


# Training


def outcome(
    transformer: CausalTransformer, tokens: Tensor, condition: Tensor, *, checkpointing: bool
) -> dict[str, Tensor]:
    """Return z and all gradients of one step in training, with dropout."""
    transformer.train().zero_grad()
    transformer.checkpointing = checkpointing
    torch.manual_seed(7)
    z = transformer(tokens, RANDOM, condition)
    z.square().sum().backward()
    gradients = {n: p.grad for n, p in transformer.named_parameters() if p.grad is not None}
    return {"z": z.detach(), **{name: grad.clone() for name, grad in gradients.items()}}


def test_checkpointing_recomputes_the_blocks_and_changes_nothing(
    transformer: CausalTransformer, tokens: Tensor, condition: Tensor
) -> None:
    calls: list[str] = []
    for name, block in transformer.blocks.named_children():
        assert isinstance(block, Block)
        block.norm1.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    kept = outcome(transformer, tokens, condition, checkpointing=False)
    assert calls == ["0", "1", "2", "3"]
    recomputed = outcome(transformer, tokens, condition, checkpointing=True)
    assert calls[4:] == ["0", "1", "2", "3", "3", "2", "1", "0"]
    unused = {
        "condition.class_embedding.weight",
        "condition.null_embedding",
    }  # `condition` is given
    assert {"z", *dict(transformer.named_parameters())} - kept.keys() == unused
    assert kept.keys() == recomputed.keys()
    assert all(torch.equal(kept[name], recomputed[name]) for name in kept)


# Weights


@pytest.mark.parametrize("next_position", [False, True])
def test_the_stack_has_the_parameters_of_the_pair_but_for_the_second_entry(
    next_position: bool,
) -> None:
    def count(model: nn.Module) -> int:
        return sum(parameter.numel() for parameter in model.parameters())

    pair = Transformer(
        widths(),
        channels=CHANNELS,
        num_tokens=NUM_TOKENS,
        num_classes=CLASSES,
        condition_tokens=SLOTS,
        dropout=0.1,
    )
    entry = WIDTH**2 + WIDTH  # decoder_embed
    entry += WIDTH  # mask_token
    entry += (SLOTS + NUM_TOKENS) * WIDTH  # decoder_position
    entry += 2 * WIDTH  # the norm between encoder and decoder
    told = NUM_TOKENS * WIDTH if next_position else 0
    assert count(new_transformer(next_position=next_position)) == count(pair) - entry + told


def test_initial_weights_are_those_of_the_table() -> None:
    def initial(seed: int) -> CausalTransformer:
        transformer = new_transformer(next_position=True)
        transformer.initialize(torch.Generator().manual_seed(seed))
        return transformer

    transformer = initial(0)
    small = {
        "condition.class_embedding.weight",
        "head_position",
        "condition.null_embedding",
        "position",
    }
    std = dict.fromkeys(small, 0.02) | {"next_position": 1.0}
    for name, parameter in transformer.named_parameters():
        weight = parameter.detach()
        if name in std:
            tolerance = 4 / (2 * weight.numel()) ** 0.5
            assert float(weight.std()) == pytest.approx(std[name], rel=tolerance), name
        elif name.endswith("bias"):
            assert torch.equal(weight, torch.zeros_like(weight)), name
        elif weight.ndim == 1:  # norms
            assert torch.equal(weight, torch.ones_like(weight)), name
        else:
            bound = (6 / sum(weight.shape)) ** 0.5
            assert 0.9 * bound < float(weight.abs().max()) <= bound, name
    again, other = initial(0).state_dict(), initial(1).state_dict()
    assert all(
        torch.equal(again[name], weight) for name, weight in transformer.state_dict().items()
    )
    assert not torch.equal(other["position"], again["position"])


def test_a_new_model_heeds_the_next_position(tokens: Tensor, condition: Tensor) -> None:
    """Another position to predict changes z about as much as other tokens do."""
    transformer = new_transformer(next_position=True)
    transformer.initialize(torch.Generator().manual_seed(1))
    nn.init.zeros_(transformer.head_position)
    before = torch.arange(NUM_TOKENS - 1).expand(2, -1)[:, : NUM_TOKENS - 2]
    z = [
        transformer.predict(seen, torch.cat([before, torch.full((2, 1), last)], dim=1), condition)
        for seen, last in [(tokens, 10), (tokens, 11), (-tokens, 10)]
    ]
    one, other_position, other_tokens = (found[:, -1] for found in z)
    assert (one - other_position).norm() > 0.2 * (one - other_tokens).norm()


def test_without_next_position_there_is_no_such_parameter() -> None:
    plain, told = (new_transformer(next_position=flag).state_dict() for flag in (False, True))
    assert told.keys() - plain.keys() == {"next_position"}
    assert plain.keys() <= told.keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_width": 24}, r"generator\.size\.decoder_width: must equal encoder_width, 16,"),
        ({"decoder_heads": 4}, r"generator\.size\.decoder_heads: must equal encoder_heads, 2,"),
    ],
)
def test_a_decoder_unlike_the_encoder_is_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CausalTransformer(
            widths(**changes),
            channels=CHANNELS,
            num_tokens=NUM_TOKENS,
            num_classes=CLASSES,
            condition_tokens=SLOTS,
            dropout=0.1,
            next_position=False,
        )
