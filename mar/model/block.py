"""The transformer's block: that of a vision transformer (pre-norm), for all places or for some.

Shapes: B batch, L places in the input, Q places of the output, D width, h heads, d width of a head.
"""

import torch
from jaxtyping import Float, Int
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from timm.models import vision_transformer
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from mar.linear import affine, linear
from mar.model.dropout import Dropout, draw_masks, masked_attention
from mar.model.masking import gather_tokens


class Block(vision_transformer.Block):
    """timm's block, layer by layer, with fewer operations and an output for chosen places.

    Each place attends to all. Where only some places of the output are used, as in the last block,
    queries, projections and the MLP are computed for them alone.
    """

    attn: Attention
    mlp: Mlp

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  # timm's takes masks
        self, x: Float[Tensor, "B L D"], chosen: Int[Tensor, "B Q"] | None = None
    ) -> Float[Tensor, "B Q D"]:
        """Apply the block; return the chosen places alone, or all of them."""
        batch, length = x.shape[:2]
        rest = x if chosen is None else gather_tokens(x, chosen)  # (B, Q, D)
        num_places = rest.shape[1]
        scores = (batch * self.attn.num_heads, num_places, length)
        inner = (batch, num_places, self.mlp.fc2.weight.shape[1])
        drop = self.dropout([scores, rest.shape, inner, rest.shape], x)
        attended = self.attend(self.norm1(x), None if chosen is None else self.norm1(rest), drop)
        rest = drop.add(rest, linear(attended, self.attn.proj))
        hidden = drop(self.mlp.act(linear(self.norm2(rest), self.mlp.fc1)))
        return drop.add(rest, linear(hidden, self.mlp.fc2))

    def dropout(self, shapes: list[tuple[int, ...]], x: Tensor) -> Dropout:
        """Return the dropouts of this pass, for tensors of these shapes."""
        p = self.attn.attn_drop.p if self.training else 0.0
        at_once = p > 0 and x.device.type == "cpu" and not torch.compiler.is_compiling()
        return Dropout(p, draw_masks(p, shapes, x) if at_once else None)

    def attend(
        self, x: Float[Tensor, "B L D"], chosen: Float[Tensor, "B Q D"] | None, drop: Dropout
    ) -> Float[Tensor, "B Q D"]:
        """Let the chosen places, or all, attend to all."""
        qkv, width = self.attn.qkv, x.shape[2]
        copied = drop.masks is not None  # the CPU's attention needs it, so once for all three
        if chosen is None:
            queries, keys, values = self.split_heads(linear(x, qkv), 3, copied)  # (B, h, L, d)
        else:
            of_queries, of_others = torch.split(qkv.weight, [width, 2 * width])
            to_queries, to_others = torch.split(qkv.bias, [width, 2 * width])
            (queries,) = self.split_heads(affine(chosen, of_queries, to_queries), 1, copied)
            keys, values = self.split_heads(affine(x, of_others, to_others), 2, copied)
        if drop.masks is None:
            attended = scaled_dot_product_attention(queries, keys, values, dropout_p=drop.p)
        else:
            q, k, v = (x.flatten(0, 1) for x in (queries, keys, values))  # (B h, L, d)
            attended = masked_attention(q, k, v, drop.masks.pop(0)).view(queries.shape)
        return attended.transpose(1, 2).flatten(2)

    def split_heads(
        self, x: Float[Tensor, "B L nD"], count: int, copied: bool = False
    ) -> tuple[Tensor, ...]:
        """Cut a projection into `count` tensors (B, h, L, d), copied into their order or not."""
        batch, length = x.shape[:2]
        cut = x.view(batch, length, count, self.attn.num_heads, self.attn.head_dim)
        cut = cut.permute(2, 0, 3, 1, 4)
        return (cut.contiguous() if copied else cut).unbind()
