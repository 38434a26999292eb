"""The masked autoencoder: from known tokens to a condition z for each position (MAR, 3.4).

Shapes: B batch, G samples and, with guidance, as many without condition, N tokens of an image, V
visible tokens, M drawn tokens, K condition tokens, L tokens the encoder sees (K + V), C channels of
a token, D width of the encoder, E width of the decoder.
"""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int, Shaped
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from mar.activation_checkpointing import Checkpointed
from mar.config import Config
from mar.linear import Linear
from mar.model import conditions
from mar.model.block import Block
from mar.model.conditions import TextShape
from mar.model.masking import expand_index, gather_tokens


class Widths(Config):
    """The transformer's sizes."""

    encoder_width: int = Field(gt=0, le=65_536, description="width of the encoder")
    encoder_blocks: int = Field(gt=0, le=1_000, description="transformer blocks of the encoder")
    encoder_heads: int = Field(gt=0, le=65_536, description="attention heads of the encoder")
    decoder_width: int = Field(gt=0, le=65_536, description="width of the decoder, and of z")
    decoder_blocks: int = Field(gt=0, le=1_000, description="transformer blocks of the decoder")
    decoder_heads: int = Field(gt=0, le=65_536, description="attention heads of the decoder")


LayerNorm = partial(nn.LayerNorm, eps=1e-6)


class IndexEmbedding(nn.Embedding):
    """Embed tokens that are indices into a codebook, in place of a projection."""

    def forward(self, input: Int[Tensor, "B V 1"]) -> Float[Tensor, "B V D"]:
        """Return the embedding of each index."""
        return super().forward(input.squeeze(2))


# Returns z of the drawn positions, given all tokens, the visible and the drawn positions; with
# guidance, the samples without condition follow those with it.
Predictor = Callable[
    [Shaped[Tensor, "B N C"], Int[Tensor, "B V"], Int[Tensor, "B M"]], Float[Tensor, "G M E"]
]


class TokenTransformer(Checkpointed):
    """What both transformers share: the embeddings of condition and tokens, initial weights."""

    def __init__(
        self,
        width: int,
        *,
        channels: int,
        num_codes: int | None,
        num_classes: int,
        text: TextShape | None,
        condition_tokens: int,
    ) -> None:
        """Make the layers; with `num_codes`, tokens are indices into a codebook of that size."""
        super().__init__()
        self.condition_tokens = condition_tokens  # (MAR: buffer)
        self.condition = conditions.condition_tokens(num_classes, text, width, condition_tokens)
        self.z_proj = (
            Linear(channels, width) if num_codes is None else IndexEmbedding(num_codes, width)
        )
        self.z_proj_ln = LayerNorm(width)

    def initialize(self, rng: torch.Generator) -> None:
        """Set every weight.

        | what                                             | weight         | bias |
        |--------------------------------------------------|----------------|------|
        | Linear                                           | Xavier uniform | 0    |
        | embeddings, null vectors, mask token, positions  | N(0, 0.02)     |      |
        | LayerNorm                                        | 1              | 0    |
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=rng)
                if module.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02, generator=rng)
        for parameter in (
            *self.condition.parameters(recurse=False),
            *self.parameters(recurse=False),
        ):
            nn.init.normal_(parameter, std=0.02, generator=rng)


class Transformer(TokenTransformer):
    """Encoder over the visible tokens, decoder over all positions.

    Sets of positions are given as indices, not as a mask, so that their sizes are known without
    waiting for the device.
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
    ) -> None:
        encoder, decoder = widths.encoder_width, widths.decoder_width
        super().__init__(
            encoder,
            channels=channels,
            num_codes=num_codes,
            num_classes=num_classes,
            text=text,
            condition_tokens=condition_tokens,
        )
        length = condition_tokens + num_tokens
        self.encoder_position = nn.Parameter(torch.empty(1, length, encoder))
        self.encoder_blocks = blocks(encoder, widths.encoder_blocks, widths.encoder_heads, dropout)
        self.encoder_norm = LayerNorm(encoder)
        self.decoder_embed = Linear(encoder, decoder)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder))
        self.decoder_position = nn.Parameter(torch.empty(1, length, decoder))
        self.decoder_blocks = blocks(decoder, widths.decoder_blocks, widths.decoder_heads, dropout)
        self.decoder_norm = LayerNorm(decoder)
        self.head_position = nn.Parameter(torch.empty(1, num_tokens, decoder))

    def encode(
        self,
        tokens: Shaped[Tensor, "B N C"],
        visible: Int[Tensor, "B V"],
        condition: Float[Tensor, "B K D"],
    ) -> Float[Tensor, "B L D"]:
        """Encode the visible tokens behind the K condition tokens."""
        count = self.condition_tokens
        known = gather_tokens(tokens, visible)  # (B, V, C)
        of_slots, of_tokens = torch.split(self.encoder_position[0], [count, tokens.shape[1]])
        x = self.z_proj(known) + functional.embedding(visible, of_tokens)  # (B, V, D)
        slots = condition + of_slots  # (B, K, D)
        x = self.z_proj_ln(torch.cat([slots, x], dim=1))  # (B, L, D)
        for block in self.encoder_blocks:
            x = self.apply_block(block, x)
        return self.encoder_norm(x)

    def decode(
        self,
        encoded: Float[Tensor, "B L D"],
        visible: Int[Tensor, "B V"],
        drawn: Int[Tensor, "B M"] | None = None,
    ) -> Float[Tensor, "B M E"]:
        """Put visible tokens in place, mask tokens elsewhere, and return z of drawn positions.

        The last block computes these positions alone, as nothing else of it is used; without them,
        it computes all.
        """
        count = self.condition_tokens
        encoded = self.decoder_embed(encoded)  # (B, L, E)
        batch, _, width = encoded.shape
        num_tokens = self.head_position.shape[1]
        x = self.mask_token.to(encoded.dtype).expand(batch, num_tokens, width)
        slots, known = torch.split(encoded, [count, visible.shape[1]], dim=1)
        x = x.scatter(1, expand_index(visible, width), known)  # (B, N, E)
        x = torch.cat([slots, x], dim=1) + self.decoder_position  # (B, K + N, E)
        if drawn is None:
            drawn = torch.arange(num_tokens, device=x.device).expand(batch, -1)
        *earlier, last = self.decoder_blocks
        for block in earlier:
            x = self.apply_block(block, x)
        x = self.apply_block(partial(last, chosen=drawn + count), x)  # (B, M, E)
        return self.decoder_norm(x) + functional.embedding(drawn, self.head_position[0])

    def forward(
        self,
        tokens: Shaped[Tensor, "B N C"],
        visible: Int[Tensor, "B V"],
        condition: Float[Tensor, "B K D"],
        drawn: Int[Tensor, "B M"] | None = None,
    ) -> Float[Tensor, "B M E"]:
        """Return z of drawn positions, or of all, given visible tokens and the condition."""
        return self.decode(self.encode(tokens, visible, condition), visible, drawn)


def blocks(
    width: int, num_blocks: int, num_heads: int, dropout: float, kind: type[Block] = Block
) -> nn.ModuleList:
    """Return blocks of a vision transformer, before their weights are set."""
    return nn.ModuleList(
        kind(
            width,
            num_heads,
            mlp_ratio=4.0,
            qkv_bias=True,
            proj_drop=dropout,
            attn_drop=dropout,
            norm_layer=LayerNorm,  # pyright: ignore[reportArgumentType]  # timm only calls it
        )
        for _ in range(num_blocks)
    )
