"""MAR: masked autoregression over continuous tokens, each token's distribution modelled by a head.

Shapes: B batch, N tokens of an image, M hidden tokens, K condition tokens, C channels of a token,
c channels of a latent, H W latent grid.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, Shaped
from pydantic import Discriminator, Field, Tag
from torch import Tensor, nn

from mar.config import Config, cut_down, name_or_fields
from mar.heads.base import Draws
from mar.heads.registry import HEADS, HeadConfig
from mar.latents.posterior import LatentShape
from mar.model import masking
from mar.model.causal import CausalTransformer, check_one_stack
from mar.model.conditions import TextShape
from mar.model.prediction import BidirectionalPredictor
from mar.model.transformer import Predictor, Transformer, Widths


class MaskRatio(Config):
    """Distribution of the mask ratio, which is drawn once for each batch (MAR, section 4.1)."""

    min: float = Field(gt=0, le=1, description="smallest share of hidden tokens (MAR: 0.7)")
    std: float = Field(
        gt=0,
        description="standard deviation of the normal, which has mean 1 and is truncated to "
        "[min, 1] (MAR: 0.25); from 1 on, shares are nearly uniform",
    )


class GeneratorConfig(Config):
    """Section `generator` of `params.yaml`: the model, with trained or released weights."""

    size: Annotated[
        Annotated[Literal["base", "large", "huge"], Tag("name")] | Annotated[Widths, Tag("fields")],
        Discriminator(name_or_fields),
    ] = Field(description="the transformer: a size of the paper by name, or all six numbers")
    attention: Literal["bidirectional", "causal"] = Field(
        description="masked autoencoder, or one decoder-only stack (MAR, Table 1)"
    )
    order: Literal["random", "raster"] = Field(
        description="order of the tokens in training; causal attention follows it"
    )
    patch_size: int = Field(
        gt=0, le=1_000, description="side of the square of latents that makes a token"
    )
    condition_tokens: int = Field(
        gt=0,
        le=65_536,
        description="slots that hold the class, or the tokens of a text (MAR: buffer size)",
    )
    dropout: float = Field(ge=0, lt=1, description="dropout on attention and on projections")
    label_drop: float = Field(
        ge=0, lt=1, description="share of samples trained without their class or text"
    )
    mask_ratio: MaskRatio | None = Field(
        description="shares of hidden tokens in training; null if causal"
    )
    head: HeadConfig = Field(description="what models the distribution of a token")

    @property
    def widths(self) -> Widths:
        """Return the six numbers of the size."""
        return SIZES[self.size] if isinstance(self.size, str) else self.size

    @property
    def is_discrete(self) -> bool:
        """Return whether a token is an index into a codebook."""
        return HEADS[self.head.kind].head.is_discrete


@dataclass(frozen=True)
class TrainingDraws:
    """The random numbers of the loss of a batch, drawn for the whole batch at once.

    A slice of them belongs to the same slice of the batch, so the loss does not depend on how a
    batch is split over accumulation steps or processes.
    """

    orders: Int[Tensor, "B N"]
    num_hidden: int
    dropped: Bool[Tensor, " B"]
    head: Draws

    def __getitem__(self, part: slice) -> "TrainingDraws":
        """Return the draws of some of the samples."""
        head = tuple(tensor[part] for tensor in self.head)
        return TrainingDraws(self.orders[part], self.num_hidden, self.dropped[part], head)


class MAR(nn.Module):
    """The whole model: a transformer predicts z for each token, a head models the token given z."""

    def __init__(
        self,
        config: GeneratorConfig,
        latent: LatentShape,
        num_classes: int,
        codebook_size: int | None = None,
        *,
        text: TextShape | None = None,
    ) -> None:
        """Make the layers.

        Args:
            config: What to make.
            latent: The shape of an image's latents.
            num_classes: Classes of the data.
            codebook_size: Codes of the tokenizer; needed where tokens are indices.
            text: What is given of a text, where images are conditioned on one and not on a class.

        Raises:
            ValueError: sizes do not fit together, or the tokenizer does not fit the head.
        """
        super().__init__()
        check_size(config, latent, codebook_size)
        self.config = cut_down(config, GeneratorConfig)
        self.latent = latent
        self.num_classes = num_classes
        self.text = text
        self.codebook_size = codebook_size
        self.rows = latent.height // config.patch_size
        self.columns = latent.width // config.patch_size
        self.num_tokens = self.rows * self.columns
        self.channels = 1 if config.is_discrete else latent.channels * config.patch_size**2
        widths = config.widths
        num_codes = codebook_size if config.is_discrete else None
        make = partial(
            Transformer
            if config.attention == "bidirectional"
            else partial(CausalTransformer, next_position=config.order == "random"),
            widths,
        )
        self.transformer = make(
            channels=self.channels,
            num_codes=num_codes,
            num_tokens=self.num_tokens,
            num_classes=num_classes,
            text=text,
            condition_tokens=config.condition_tokens,
            dropout=config.dropout,
        )
        self.head = HEADS[config.head.kind].head(
            config.head, channels=num_codes or self.channels, z_width=widths.decoder_width
        )

    def initialize(self, rng: torch.Generator) -> None:
        """Set every weight; all randomness comes from `rng`."""
        self.transformer.initialize(rng)
        self.head.initialize(rng)

    def patchify(self, latents: Shaped[Tensor, "B c H W"]) -> Shaped[Tensor, "B N C"]:
        """Cut latents into tokens, row by row; a token's channels are ordered (c, p, p)."""
        p = self.config.patch_size
        return rearrange(latents, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)

    def unpatchify(self, tokens: Shaped[Tensor, "B N C"]) -> Shaped[Tensor, "B c H W"]:
        """Put tokens together to latents."""
        p = self.config.patch_size
        return rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=self.rows, p=p, q=p)

    def draw(self, batch: int, rng: torch.Generator) -> TrainingDraws:
        """Draw one mask ratio for a batch, and each sample's order, dropped condition and noise."""
        config = self.config
        num_hidden = self.num_tokens
        if (ratios := config.mask_ratio) is not None:
            ratio = masking.sample_mask_ratio(rng, minimum=ratios.min, std=ratios.std)
            num_hidden = math.ceil(ratio * self.num_tokens)
        orders = self.orders(batch, rng)
        chance = torch.rand(batch, generator=rng, device=rng.device)
        head = self.head.draw(batch, num_hidden, rng)
        return TrainingDraws(orders, num_hidden, chance < config.label_drop, head)

    def orders(self, batch: int, rng: torch.Generator) -> Int[Tensor, "B N"]:
        """Return an order for each sample: random ones, or the raster order."""
        if self.config.order == "random":
            return masking.sample_orders(batch, self.num_tokens, rng)
        return masking.raster_orders(batch, self.num_tokens, rng.device)

    def forward(
        self,
        latents: Shaped[Tensor, "B c H W"],
        given: Shaped[Tensor, "B ..."],
        draws: TrainingDraws,
    ) -> Float[Tensor, ""]:
        """Return the mean loss over the hidden tokens; under causal attention, over all tokens.

        What is given is the class of each sample, or its text (`mar.model.conditions`).

        Hidden tokens are selected before the head. The original computes the head's loss for all
        tokens and discards the visible ones: the same expectation, more work.
        """
        tokens = self.patchify(latents)  # (B, N, C)
        hidden, visible = masking.split_orders(draws.orders, draws.num_hidden)
        condition = self.transformer.condition(given, draws.dropped)
        if isinstance(self.transformer, CausalTransformer):
            z = self.transformer(tokens, draws.orders.flip(1), condition)  # (B, M = N, D)
        else:
            z = self.transformer(tokens, visible, condition, hidden)  # (B, M, D)
        return self.head(z, masking.gather_tokens(tokens, hidden), draws.head).mean()

    def predictor(
        self,
        given: Shaped[Tensor, "B ..."],
        orders: Int[Tensor, "B N"],
        *,
        guided: bool = False,
        cached: bool = True,
    ) -> Predictor:
        """Return a function that predicts z of the tokens drawn in each step of one generation.

        Args:
            given: The class of each sample, or its text.
            orders: Order of the tokens, of which the last is generated first; bidirectional
                attention does not depend on it.
            guided: Whether z without condition is predicted too, in rows below those with it.
            cached: Whether causal attention keeps keys and values.
        """
        transformer, device = self.transformer, given.device
        every = torch.zeros(len(given), dtype=torch.bool, device=device)
        condition = transformer.condition(given, every)  # (B, K, D)
        null = None
        if guided:
            one = torch.ones(1, dtype=torch.bool, device=device)
            null = transformer.condition(transformer.condition.nothing(1), one)  # (1, K, D)
        if isinstance(transformer, Transformer):
            return BidirectionalPredictor(transformer, condition, null)
        copies = 1
        if null is not None:
            condition = torch.cat([condition, null.expand(len(condition), -1, -1)])
            copies = 2
        sequence = orders.flip(1).repeat(copies, 1)
        predict = transformer.predictor(condition, sequence, cached=cached)

        def predict_branches(tokens: Tensor, visible: Tensor, drawn: Tensor) -> Tensor:
            rows = (tokens.repeat(copies, 1, 1), *(p.repeat(copies, 1) for p in (visible, drawn)))
            return predict(*rows)

        return predict_branches


def check_size(config: GeneratorConfig, latent: LatentShape, codebook_size: int | None) -> None:
    """Check that the model, the latents and the tokenizer fit together.

    Raises:
        ValueError: the message names the key, what was found and what was expected.
    """
    patch_size, widths = config.patch_size, config.widths
    if latent.height % patch_size or latent.width % patch_size:
        raise ValueError(
            f"generator.patch_size: {latent.height} x {latent.width} latents do not divide into "
            f"patches of {patch_size} x {patch_size}"
        )
    for part in ("encoder", "decoder"):
        width, heads = getattr(widths, f"{part}_width"), getattr(widths, f"{part}_heads")
        if width % heads:
            raise ValueError(
                f"generator.size.{part}_width: {width} does not divide into {heads} heads"
            )
    if config.attention == "causal":
        check_one_stack(widths)
    if (config.mask_ratio is None) != (config.attention == "causal"):
        expected = "null, as nothing is masked" if config.attention == "causal" else "min and std"
        raise ValueError(
            f"generator.mask_ratio: must be {expected} under {config.attention} attention, "
            f"got {config.mask_ratio and config.mask_ratio.model_dump()}"
        )
    if config.is_discrete and codebook_size is None:
        raise ValueError(
            f"generator.head.kind: {config.head.kind} needs a tokenizer with a codebook (kind vq)"
        )
    if config.is_discrete and patch_size != 1:
        raise ValueError(
            f"generator.patch_size: must be 1 where tokens are codebook indices, got {patch_size}"
        )


def narrow_denoiser_warning(config: GeneratorConfig, latent: LatentShape) -> str | None:
    """Return a warning if the denoiser is narrow for the channels of a token, else None.

    In the paper, a width of 1024 is best for tokens of 16 channels (Table 3). A user who grouped
    latents into tokens of more channels and kept the denoiser got FID 30 instead of 3.5. The
    factor of 32 is our choice.
    """
    channels = latent.channels * config.patch_size**2
    width = config.head.denoiser_width
    if width is None or channels <= 16 or width >= 32 * channels:
        return None
    return (
        f"generator.head.size: a denoiser of width {width} is narrow for tokens of {channels} "
        f"channels, so samples may be poor; a width of {32 * channels} or more is recommended"
    )


def _named(width: int, num_blocks: int, num_heads: int) -> Widths:
    return Widths(
        encoder_width=width,
        encoder_blocks=num_blocks,
        encoder_heads=num_heads,
        decoder_width=width,
        decoder_blocks=num_blocks,
        decoder_heads=num_heads,
    )


CONDITION = "transformer.condition."  # how the names of the condition's tensors begin
SIZES = {  # MAR, section 4.1 and Table 4
    "base": _named(768, 12, 12),
    "large": _named(1024, 16, 16),
    "huge": _named(1280, 20, 16),
}
