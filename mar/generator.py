"""MAR: masked autoregression over continuous tokens, each token's distribution modelled by a head.

Shapes: B batch, N tokens of an image, M hidden tokens, K condition tokens, C channels of a token,
c channels of a latent, H W latent grid.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from pydantic import Discriminator, Field, Tag
from torch import Tensor, nn

from mar import masking, weights
from mar.config import Config
from mar.diffusion_loss import DiffusionLoss, Draws
from mar.posterior import LatentShape
from mar.transformer import Transformer, Widths


class Size(Widths):
    """The eight numbers behind a named size."""

    denoiser_blocks: int = Field(gt=0, description="residual blocks of the denoiser")
    denoiser_width: int = Field(gt=0, description="width of the denoiser")


def _size_tag(value: object) -> str:
    return "named" if isinstance(value, str) else "custom"


class GeneratorConfig(Config):
    """Section `generator` of `params.yaml`: what the generator is."""

    size: Annotated[
        Annotated[Literal["base", "large", "huge"], Tag("named")] | Annotated[Size, Tag("custom")],
        Discriminator(_size_tag),
    ] = Field(description="a size of the paper by name, or all eight numbers")
    patch_size: int = Field(gt=0, description="side of the square of latents that makes a token")
    condition_tokens: int = Field(gt=0, description="slots that hold the class (MAR: buffer size)")
    dropout: float = Field(ge=0, lt=1, description="dropout on attention and on projections")
    label_drop: float = Field(ge=0, lt=1, description="share of samples trained without class")
    mask_ratio_min: float = Field(
        gt=0, le=1, description="least share of hidden tokens in training"
    )
    num_draws: int = Field(gt=0, description="independent (t, eps) for each token (paper: 4)")


@dataclass(frozen=True)
class TrainingDraws:
    """The randomness of the loss of a batch, drawn for all of it at once.

    A slice of it goes with a slice of the batch, so the loss does not depend on how a batch is
    split over accumulation steps or processes.
    """

    orders: Int[Tensor, "B N"]
    num_hidden: int
    dropped: Bool[Tensor, " B"]
    head: Draws

    def __getitem__(self, part: slice) -> "TrainingDraws":
        """Return the draws of some of the samples."""
        head = Draws(*(tensor[part] for tensor in self.head))
        return TrainingDraws(self.orders[part], self.num_hidden, self.dropped[part], head)


class MAR(nn.Module):
    """The generator: a transformer makes a z for each token, a head draws the token from it."""

    def __init__(self, config: GeneratorConfig, latent: LatentShape, num_classes: int) -> None:
        super().__init__()
        size = SIZES[config.size] if isinstance(config.size, str) else config.size
        check_size(size, config.patch_size, latent)
        self.config = config
        self.latent = latent
        self.num_classes = num_classes
        self.rows = latent.height // config.patch_size
        self.columns = latent.width // config.patch_size
        self.num_tokens = self.rows * self.columns
        self.channels = latent.channels * config.patch_size**2
        self.transformer = Transformer(
            size,
            channels=self.channels,
            num_tokens=self.num_tokens,
            num_classes=num_classes,
            condition_tokens=config.condition_tokens,
            dropout=config.dropout,
        )
        self.head = DiffusionLoss(
            channels=self.channels,
            z_width=size.decoder_width,
            width=size.denoiser_width,
            num_blocks=size.denoiser_blocks,
            num_draws=config.num_draws,
        )

    def initialize(self, generator: torch.Generator) -> None:
        """Set every weight, from the generator alone."""
        self.transformer.initialize(generator)
        self.head.initialize(generator)

    def patchify(self, latents: Float[Tensor, "B c H W"]) -> Float[Tensor, "B N C"]:
        """Cut latents into tokens, row by row; a token's channels are ordered (c, p, p)."""
        p = self.config.patch_size
        return rearrange(latents, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)

    def unpatchify(self, tokens: Float[Tensor, "B N C"]) -> Float[Tensor, "B c H W"]:
        """Put tokens together to latents."""
        p = self.config.patch_size
        return rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=self.rows, p=p, q=p)

    def draw(self, batch: int, generator: torch.Generator) -> TrainingDraws:
        """Draw one mask ratio for a batch, and each sample's order, dropped class and noise."""
        config = self.config
        ratio = masking.sample_mask_ratio(generator, minimum=config.mask_ratio_min)
        num_hidden = math.ceil(ratio * self.num_tokens)
        orders = masking.sample_orders(batch, self.num_tokens, generator)
        chance = torch.rand(batch, generator=generator, device=generator.device)
        head = self.head.draw(batch, num_hidden, generator)
        return TrainingDraws(orders, num_hidden, chance < config.label_drop, head)

    def forward(
        self, latents: Float[Tensor, "B c H W"], labels: Int[Tensor, " B"], draws: TrainingDraws
    ) -> Float[Tensor, ""]:
        """Return the mean loss over the hidden tokens.

        They are selected before the head, which then draws timesteps for them alone: the mean is
        that of the original, which computes all tokens and discards most.
        """
        tokens = self.patchify(latents)  # (B, N, C)
        hidden, visible = masking.split_orders(draws.orders, draws.num_hidden)
        condition = self.transformer.condition(labels, draws.dropped)
        z = self.transformer(tokens, visible, condition)  # (B, N, D)
        return self.head(masking.take(z, hidden), masking.take(tokens, hidden), draws.head).mean()


def save(path: Path, model: MAR, tokenizer: str) -> None:
    """Write a generator as one safetensors file, with the digest of its tokenizer."""
    description = {
        "generator": model.config.model_dump(),
        "latent": asdict(model.latent),
        "num_classes": model.num_classes,
        "tokenizer": tokenizer,
    }
    weights.save(path, model, description)


def load(path: Path, tokenizer: str) -> MAR:
    """Read what `save` wrote, ready to generate.

    Raises:
        ValueError: the file is not one, or its latents are those of another tokenizer.
    """
    tensors, description = weights.load(path)
    if "generator" not in description:
        raise ValueError(f"{path} does not hold a generator")
    if description["tokenizer"] != tokenizer:
        raise ValueError(
            f"{path} was trained on latents of tokenizer {description['tokenizer'][:12]}, "
            f"got tokenizer {tokenizer[:12]}"
        )
    config = GeneratorConfig.model_validate(description["generator"])
    model = MAR(config, LatentShape(**description["latent"]), description["num_classes"])
    model.load_state_dict(tensors)
    return model.requires_grad_(False).eval()


def check_size(size: Size, patch_size: int, latent: LatentShape) -> None:
    """Refuse sizes that do not fit together.

    Raises:
        ValueError: the grid does not divide into patches, or a width into heads.
    """
    if latent.height % patch_size or latent.width % patch_size:
        raise ValueError(
            f"generator.patch_size: {latent.height} x {latent.width} latents do not divide into "
            f"patches of {patch_size} x {patch_size}"
        )
    for part in ("encoder", "decoder"):
        width, heads = getattr(size, f"{part}_width"), getattr(size, f"{part}_heads")
        if width % heads:
            raise ValueError(
                f"generator.size.{part}_width: {width} does not divide into {heads} heads"
            )


def _named(width: int, blocks: int, heads: int, denoiser_blocks: int, denoiser_width: int) -> Size:
    return Size(
        encoder_width=width,
        encoder_blocks=blocks,
        encoder_heads=heads,
        decoder_width=width,
        decoder_blocks=blocks,
        decoder_heads=heads,
        denoiser_blocks=denoiser_blocks,
        denoiser_width=denoiser_width,
    )


SIZES: dict[str, Size] = {  # MAR, section 4.1 and Table 4
    "base": _named(768, 12, 12, denoiser_blocks=6, denoiser_width=1024),
    "large": _named(1024, 16, 16, denoiser_blocks=8, denoiser_width=1280),
    "huge": _named(1280, 20, 16, denoiser_blocks=12, denoiser_width=1536),
}
