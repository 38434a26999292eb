"""Prediction of z in a bidirectional generation: work only where a token needs it, nothing twice.

The result is that of the transformer's forward pass, up to rounding. In the first block of a stack,
queries, keys and values of a place depend on this place alone: those of known tokens serve both
branches of guidance, those of mask tokens all samples and steps, those of the condition all steps.
In the last block, where few places ask, no keys and values are formed: their weights are applied to
the few queries instead, q (W x) = (q W) x, and to the few sums over places.

Shapes: B batch, G samples and, with guidance, as many without condition, N tokens of an image, V
visible tokens, M drawn tokens, K condition tokens, L places in the input, Q places of the output, C
channels of a token, D width of a stack, E width of the decoder.
"""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import embedding, linear, scaled_dot_product_attention

from mar.model.block import Block
from mar.model.masking import expand_index, gather_tokens
from mar.model.transformer import Transformer


class BidirectionalPredictor:
    """Predict z of drawn positions, which come in any order, in one generation."""

    @torch.no_grad()
    def __init__(
        self,
        transformer: Transformer,
        condition: Float[Tensor, "B K D"],
        null: Float[Tensor, "1 K D"] | None,
    ) -> None:
        """Compute what all steps share.

        Args:
            transformer: In evaluation mode.
            condition: The condition tokens of each sample.
            null: Those of any sample without condition; None for no guidance.
        """
        self.transformer = transformer
        of_slots = transformer.encoder_position[:, : transformer.condition_tokens]
        self.encoder = cast("list[Block]", list(transformer.encoder_blocks))
        self.decoder = cast("list[Block]", list(transformer.decoder_blocks))
        self.branches = [
            _with_qkv(self.encoder[0], transformer.z_proj_ln(rows + of_slots))
            for rows in ([condition] if null is None else [condition, null])
        ]  # (B or 1, K, D) and (B or 1, K, 3 D) each
        masks = transformer.mask_token + transformer.decoder_position
        self.masks = _with_qkv(self.decoder[0], masks)  # (1, K + N, E), (1, K + N, 3 E)

    @torch.no_grad()
    def __call__(
        self,
        tokens: Shaped[Tensor, "B N C"],
        visible: Int[Tensor, "B V"],
        drawn: Int[Tensor, "B M"],
    ) -> Float[Tensor, "G M E"]:
        """Return z of the drawn positions: with condition and, below, without."""
        if len(self.branches) == 1 or visible.shape[1] > 0:
            return self._predict(self.branches, tokens, visible, drawn)
        # Without condition and visible tokens, all samples are one: all positions are drawn in it.
        given = self._predict(self.branches[:1], tokens, visible, drawn)
        null = self._predict(self.branches[1:], tokens[:1], visible[:1], drawn.flatten()[None])
        return torch.cat([given, null.reshape(given.shape)])

    def _predict(
        self,
        branches: Sequence[tuple[Tensor, Tensor]],
        tokens: Shaped[Tensor, "B N C"],
        visible: Int[Tensor, "B V"],
        drawn: Int[Tensor, "B M"],
    ) -> Float[Tensor, "G M E"]:
        encoded = self._encode(branches, tokens, visible)
        repeated = [positions.repeat(len(branches), 1) for positions in (visible, drawn)]
        return self._decode(encoded, *repeated)

    def _encode(
        self,
        branches: Sequence[tuple[Tensor, Tensor]],
        tokens: Shaped[Tensor, "B N C"],
        visible: Int[Tensor, "B V"],
    ) -> Float[Tensor, "G L D"]:
        """Encode the visible tokens behind the K condition tokens."""
        transformer = self.transformer
        of_tokens = transformer.encoder_position[0, transformer.condition_tokens :]
        known = transformer.z_proj(gather_tokens(tokens, visible)) + embedding(visible, of_tokens)
        first, *later = self.encoder
        parts = _with_qkv(first, transformer.z_proj_ln(known))  # (B, V, D), (B, V, 3 D)
        x, qkv = (
            torch.cat([torch.cat([s.expand(len(rest), -1, -1), rest], 1) for s in slots])
            for slots, rest in zip(zip(*branches, strict=True), parts, strict=True)
        )  # (G, L, D), (G, L, 3 D)
        x = _finish(first, x, _attend(first, qkv))
        for block in later:
            x = block(x)
        return transformer.encoder_norm(x)

    def _decode(
        self,
        encoded: Float[Tensor, "G L D"],
        visible: Int[Tensor, "G V"],
        drawn: Int[Tensor, "G M"],
    ) -> Float[Tensor, "G M E"]:
        """Return z of the drawn positions; as `Transformer.decode`, which knows them all."""
        transformer, count = self.transformer, self.transformer.condition_tokens
        slots = torch.arange(count, device=visible.device).expand(len(visible), -1)
        known = torch.cat([slots, visible + count], dim=1)  # (G, L), places in the decoder
        x = transformer.decoder_embed(encoded) + embedding(known, transformer.decoder_position[0])
        *earlier, last = self.decoder
        if earlier:
            parts = _with_qkv(earlier[0], x)
            x, qkv = (_placed(*pair, known) for pair in zip(self.masks, parts, strict=True))
            x = _finish(earlier[0], x, _attend(earlier[0], qkv))  # (G, K + N, E)
            for block in earlier[1:]:
                x = block(x)
        else:
            x = _placed(self.masks[0], x, known)
        chosen = drawn + count
        x = _for_few(last, x, chosen) if _are_few(last, x, chosen) else last(x, chosen)
        head_position = embedding(drawn, transformer.head_position[0])
        return transformer.decoder_norm(x) + head_position


def _with_qkv(
    block: Block, x: Float[Tensor, "B L D"]
) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B L nD"]]:
    """Return the input of a block, and its queries, keys and values."""
    return x, block.attn.qkv(block.norm1(x))


def _placed(
    masks: Float[Tensor, "1 L D"], known: Float[Tensor, "G V D"], places: Int[Tensor, "G V"]
) -> Float[Tensor, "G L D"]:
    """Put what is known in place of mask tokens."""
    everywhere = masks.to(known.dtype).expand(len(known), -1, -1)
    return everywhere.scatter(1, expand_index(places, known.shape[2]), known)


def _attend(block: Block, qkv: Float[Tensor, "G L nD"]) -> Float[Tensor, "G L D"]:
    """Let each place attend to all."""
    queries, keys, values = block.split_heads(qkv, 3)
    attended = scaled_dot_product_attention(queries, keys, values)  # (G, h, L, d)
    return attended.transpose(1, 2).flatten(2)


def _finish(
    block: Block, x: Float[Tensor, "G Q D"], attended: Float[Tensor, "G Q D"]
) -> Float[Tensor, "G Q D"]:
    """Apply what follows the attention in a block."""
    x = x + block.attn.proj(attended)
    return x + block.mlp.fc2(block.mlp.act(block.mlp.fc1(block.norm2(x))))


def _are_few(block: Block, x: Float[Tensor, "G L D"], chosen: Int[Tensor, "G Q"]) -> bool:
    """Return whether `_for_few` takes fewer products than keys and values of all places do."""
    (_, length, width), num_chosen = x.shape, chosen.shape[1]
    moved = num_chosen * (width + (block.attn.num_heads - 1) * length)
    return moved < length * width


def _for_few(
    block: Block, x: Float[Tensor, "G L D"], chosen: Int[Tensor, "G Q"]
) -> Float[Tensor, "G Q D"]:
    """Return a block's output at the chosen places, which attend to all, without keys and values.

    A bias of keys adds the same to all scores of a query, so it drops out.
    """
    attn, width = block.attn, x.shape[2]
    heads, head_width = attn.num_heads, attn.head_dim
    normed = block.norm1(x)
    weights = attn.qkv.weight.view(3, heads, head_width, width)
    to_queries, _, to_values = attn.qkv.bias.view(3, width)
    asked = linear(gather_tokens(normed, chosen), weights[0].flatten(0, 1), to_queries)
    per_head = asked.view(-1, heads, head_width).transpose(0, 1)  # (h, G Q, d)
    queries = torch.bmm(per_head, weights[1].to(asked.dtype))  # (h, G Q, D)
    queries = queries.view(heads, *chosen.shape, width).transpose(0, 1).flatten(1, 2)
    scores = torch.bmm(queries, normed.to(queries.dtype).mT) * attn.scale  # (G, h Q, L)
    sums = torch.bmm(scores.softmax(dim=2).to(queries.dtype), normed.to(queries.dtype))
    per_head = sums.view(len(x), heads, -1, width).transpose(0, 1).flatten(1, 2)  # (h, G Q, D)
    attended = torch.bmm(per_head, weights[2].to(per_head.dtype).mT)  # (h, G Q, d)
    attended = attended.transpose(0, 1).reshape(*chosen.shape, width) + to_values
    return _finish(block, gather_tokens(x, chosen), attended)
