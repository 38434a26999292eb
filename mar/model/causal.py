"""The causal transformer: one decoder-only stack, each token from those before it (MAR, Table 1).

A sequence lists the positions of an image in the order of generation: 0, 1, 2, ... (raster), or a
permutation for each sample (random). The input is K condition tokens, then all tokens of the
sequence but the last. The output at the last condition token is z of the first token; the output
at a token is z of the next one.

Shapes: B batch, N tokens of an image, S tokens predicted by a call, K condition tokens, L places in
the input, V visible tokens, M drawn tokens (one), C channels of a token, D width, h heads, d width
of a head.
"""

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.functional import embedding, pad, scaled_dot_product_attention

from mar.linear import linear
from mar.model.block import Block
from mar.model.conditions import TextShape
from mar.model.masking import expand_index, gather_tokens
from mar.model.transformer import LayerNorm, TokenTransformer, Widths, blocks


class Cache:
    """Keys and values of the places that a block has seen, with room for `length` places."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.seen = 0
        self.buffers: tuple[Tensor, Tensor] | None = None

    def extend(
        self, keys: Float[Tensor, "B h L d"], values: Float[Tensor, "B h L d"]
    ) -> tuple[Float[Tensor, "B h P d"], Float[Tensor, "B h P d"]]:
        """Append the keys and values of some places, and return those of all P places so far."""
        if self.buffers is None:  # the dtype is known only now: autocast may change it
            batch, heads, _, width = keys.shape
            size = (batch, heads, self.length, width)
            self.buffers = keys.new_empty(size), values.new_empty(size)
        start, self.seen = self.seen, self.seen + keys.shape[2]
        for buffer, new in zip(self.buffers, (keys, values), strict=True):
            buffer[:, :, start : self.seen] = new
        all_keys, all_values = self.buffers
        return all_keys[:, :, : self.seen], all_values[:, :, : self.seen]


class CausalBlock(Block):
    """A block in which each place attends to itself and to those before it."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Tensor, "B L D"], cache: Cache | None = None
    ) -> Float[Tensor, "B L D"]:
        """Apply the block; with a cache, the places before are in it."""
        attended = linear(self.attend_before(self.norm1(x), cache), self.attn.proj)
        x = x + self.attn.proj_drop(attended)
        hidden = self.mlp.drop1(self.mlp.act(linear(self.norm2(x), self.mlp.fc1)))
        return x + self.mlp.drop2(linear(hidden, self.mlp.fc2))

    def attend_before(
        self, x: Float[Tensor, "B L D"], cache: Cache | None
    ) -> Float[Tensor, "B L D"]:
        """Let each place attend to itself and to those before it, which may be in a cache."""
        queries, keys, values = self.split_heads(linear(x, self.attn.qkv), 3)  # (B, h, L, d)
        num_queries = queries.shape[2]
        if cache is not None:
            # `is_causal` aligns its mask with the first key.
            assert num_queries == 1 or cache.seen == 0
            keys, values = cache.extend(keys, values)
        attended = scaled_dot_product_attention(
            queries,
            keys,
            values,
            dropout_p=self.attn.attn_drop.p if self.training else 0.0,
            is_causal=num_queries > 1,
        )  # (B, h, L, d)
        return attended.transpose(1, 2).flatten(2)


class CausalTransformer(TokenTransformer):
    """The encoder's and the decoder's blocks as one stack with a causal mask.

    The mask covers the K condition tokens too. The last of them, where the first token is
    predicted, attends to all of them. So attention needs no mask
    tensor, and any prefix of the input can be computed alone.
    """

    def __init__(
        self,
        widths: Widths,
        *,
        channels: int,
        num_codes: int | None = None,
        num_tokens: int,
        num_classes: int,
        text: TextShape | None = None,
        condition_tokens: int,
        dropout: float,
        next_position: bool,
    ) -> None:
        """Make the layers; with `next_position`, each place knows which position it predicts.

        Raises:
            ValueError: encoder and decoder, here one stack, differ in width or in heads.
        """
        check_one_stack(widths)
        width, heads = widths.encoder_width, widths.encoder_heads
        super().__init__(
            width,
            channels=channels,
            num_codes=num_codes,
            num_classes=num_classes,
            text=text,
            condition_tokens=condition_tokens,
        )
        depth = widths.encoder_blocks + widths.decoder_blocks
        self.position = nn.Parameter(torch.empty(1, condition_tokens + num_tokens, width))
        self.blocks = blocks(width, depth, heads, dropout, CausalBlock)
        self.next_position = (
            nn.Parameter(torch.empty(1, num_tokens, width)) if next_position else None
        )
        self.norm = LayerNorm(width)
        self.head_position = nn.Parameter(torch.empty(1, num_tokens, width))

    def initialize(self, rng: torch.Generator) -> None:
        """Set every weight as in `TokenTransformer`, except `next_position`, from N(0, 1).

        It is added to activations that are as large as a LayerNorm's output. The paper does not say
        how it is initialised. From N(0, 0.02), a model of the digits still ignored it after 500
        steps: a classifier recognised 15 % of its samples, and 90 % from N(0, 1).
        """
        super().initialize(rng)
        if self.next_position is not None:
            nn.init.normal_(self.next_position, generator=rng)

    def slots(self, condition: Float[Tensor, "B K D"]) -> Float[Tensor, "B K D"]:
        """Embed the condition tokens."""
        x = condition + self.position[:, : self.condition_tokens]  # (B, K, D)
        return self.z_proj_ln(x)

    def embed(
        self, tokens: Shaped[Tensor, "B N C"], positions: Int[Tensor, "B L"]
    ) -> Float[Tensor, "B L D"]:
        """Embed the tokens at some positions."""
        position = self.position[:, self.condition_tokens :]  # (1, N, D)
        return self.z_proj_ln(
            self.z_proj(gather_tokens(tokens, positions)) + _at(position, positions)
        )

    def run(
        self,
        x: Float[Tensor, "B L D"],
        predicted: Int[Tensor, "B S"],
        caches: Sequence[Cache] | None = None,
    ) -> Float[Tensor, "B S D"]:
        """Apply the blocks; return z of the S positions that the last S places predict.

        With caches, one for each block, the input continues the places that they hold.
        """
        before = x.shape[1] - predicted.shape[1]  # condition tokens that predict nothing
        for index, block in enumerate(self.blocks):
            if self.next_position is not None and index == len(self.blocks) // 2:
                x = x + pad(_at(self.next_position, predicted), (0, 0, before, 0))
            cache = None if caches is None else caches[index]
            x = self.apply_block(partial(block, cache=cache), x)
        return self.norm(x[:, before:]) + _at(self.head_position, predicted)

    def predict(
        self,
        tokens: Shaped[Tensor, "B N C"],
        sequence: Int[Tensor, "B S"],
        condition: Float[Tensor, "B K D"],
    ) -> Float[Tensor, "B S D"]:
        """Return z of the first S positions of a sequence, each given the tokens before it."""
        places = [self.slots(condition), self.embed(tokens, sequence[:, :-1])]
        return self.run(torch.cat(places, dim=1), sequence)

    def forward(
        self,
        tokens: Shaped[Tensor, "B N C"],
        sequence: Int[Tensor, "B N"],
        condition: Float[Tensor, "B K D"],
    ) -> Float[Tensor, "B N D"]:
        """Return the condition z of every position, given the tokens before it and the class."""
        z = self.predict(tokens, sequence, condition)  # (B, N, D), in the order of the sequence
        return torch.zeros_like(z).scatter(1, expand_index(sequence, z.shape[2]), z)

    def predictor(
        self,
        condition: Float[Tensor, "B K D"],
        sequence: Int[Tensor, "B N"],
        *,
        cached: bool = True,
    ) -> "CausalPredictor":
        """Return a function that predicts z in one generation, a token at a time."""
        return CausalPredictor(self, condition, sequence, cached=cached)


class CausalPredictor:
    """Predict z of one token after the other, in the order of a sequence, without gradients.

    With a cache, a call computes the newest place alone, so the tokens of earlier calls must not
    change. Without, a call recomputes all places so far.
    """

    def __init__(
        self,
        transformer: CausalTransformer,
        condition: Float[Tensor, "B K D"],
        sequence: Int[Tensor, "B N"],
        *,
        cached: bool,
    ) -> None:
        self.transformer = transformer
        self.condition = condition
        self.sequence = sequence
        self.num_calls = 0
        length = transformer.condition_tokens + sequence.shape[1] - 1
        self.caches = [Cache(length) for _ in transformer.blocks] if cached else None

    @torch.no_grad()
    def __call__(
        self,
        tokens: Shaped[Tensor, "B N C"],
        visible: Int[Tensor, "B V"],
        drawn: Int[Tensor, "B M"],
    ) -> Float[Tensor, "B M D"]:
        """Return z of the next position of the sequence; the visible ones come in any order.

        Raises:
            ValueError: more than one position is drawn, or another than the next of the sequence:
                on a CPU by the positions, elsewhere by their number.
        """
        self._check(visible, drawn)
        known = self.num_calls
        self.num_calls += 1
        if self.caches is None:
            sequence = self.sequence[:, : known + 1]
            return self.transformer.predict(tokens, sequence, self.condition)[:, -1:]
        if known == 0:
            x = self.transformer.slots(self.condition)  # (B, K, D)
        else:
            x = self.transformer.embed(tokens, self.sequence[:, known - 1 : known])  # (B, 1, D)
        return self.transformer.run(x, drawn, self.caches)

    def _check(self, visible: Tensor, drawn: Tensor) -> None:
        if drawn.shape[1] != 1:
            raise ValueError(f"a causal transformer draws 1 token a step, got {drawn.shape[1]}")
        known = self.num_calls
        is_next = visible.shape[1] == known
        if is_next and drawn.device.type == "cpu":  # elsewhere, the host would wait for the answer
            past = self.sequence[:, :known].sort(dim=1).values
            expected = torch.cat([past, self.sequence[:, known : known + 1]], dim=1)
            is_next = torch.equal(torch.cat([visible.sort(dim=1).values, drawn], dim=1), expected)
        if not is_next:
            raise ValueError(
                f"step {known} of causal generation must draw token {known} of the sequence and "
                f"see the {known} before it; got other positions, {visible.shape[1]} of them seen"
            )


def _at(positions: Float[Tensor, "1 N D"], chosen: Int[Tensor, "B S"]) -> Float[Tensor, "B S D"]:
    """Select the embeddings of some positions of each sample."""
    return embedding(chosen, positions[0])


def check_one_stack(widths: Widths) -> None:
    """Check that encoder and decoder can be one stack.

    Raises:
        ValueError: they differ in width or in heads.
    """
    for name in ("width", "heads"):
        encoder, decoder = getattr(widths, f"encoder_{name}"), getattr(widths, f"decoder_{name}")
        if decoder != encoder:
            raise ValueError(
                f"generator.size.decoder_{name}: must equal encoder_{name}, {encoder}, as causal "
                f"attention makes encoder and decoder one stack; got {decoder}"
            )
