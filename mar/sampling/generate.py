"""Generation: reveal tokens in a random order, a set at a time (MAR, section 3.4).

Shapes: B batch, N tokens of an image, M tokens drawn in a step, C channels of a token, S diffusion
steps, G generation steps after the first, c channels of a latent, H W latent grid.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from pydantic import Discriminator, Field, Tag
from torch import Tensor

from mar import seeds
from mar.averaging.choice import WeightsChoice
from mar.config import Config, name_or_fields
from mar.heads.base import Condition, Noise, SamplerSection
from mar.heads.registry import HEADS, SamplerConfig
from mar.model import masking
from mar.model.mar import MAR, GeneratorConfig
from mar.model.transformer import Predictor
from mar.sampling.halves import check_halves, checkerboard, hidden_counts, last_in_orders


ClassChoice = Annotated[
    Annotated[str, Field(min_length=1), Tag("name")] | Annotated[int, Field(ge=0), Tag("fields")],
    Discriminator(name_or_fields),
]
LabelChoice = Annotated[
    Annotated[Literal["as_data"], Tag("name")]
    | Annotated[list[ClassChoice], Field(min_length=1), Tag("fields")],
    Discriminator(name_or_fields),
]


PromptsChoice = Annotated[
    Annotated[str, Field(min_length=1), Tag("name")]
    | Annotated[list[str], Field(min_length=1), Tag("fields")],
    Discriminator(name_or_fields),
]


class SampleConfig(Config):
    """Section `sample` of `params.yaml`: how images are generated."""

    seed: int = Field(ge=0, description="seed of orders and noise")
    num_images: int = Field(gt=0, description="images to generate")
    weights: WeightsChoice = Field(
        description="of the generator: ema (that of training.ema_decay), raw (those trained last), "
        "or an average rebuilt after the training: {width: 0.15} or {decay: 0.999}"
    )
    labels: LabelChoice | None = Field(
        description="classes to cycle through, by number (counted from 0, in the order of "
        "classes.json) or by name (text, so in quotes where it is a number); null for all of them, "
        "equally often; as_data for all of them, as often as in the training images",
    )
    prompts: PromptsChoice | None = Field(
        description="prompts to cycle through where there is a section text: a list of them, or a "
        "file with one on each line; null for the captions of the images held out"
    )
    num_steps: int = Field(
        gt=0, description="generation steps, each of which reveals a set of tokens"
    )
    order: Literal["random", "raster", "confidence"] = Field(
        description="order of the tokens; confidence keeps the most probable draws of each step "
        "(MaskGIT; cross-entropy only)"
    )
    guidance_scale: float = Field(ge=1, description="classifier-free guidance; 1 is none")
    guidance_schedule: Literal["linear", "constant"] = Field(
        description="guidance scale: rising with the share of known tokens, or constant"
    )
    reconstruction_steps: int | None = Field(
        gt=0,
        description="the last of num_steps, in which the second half of a checkerboard is drawn "
        "after the first (GtR, arXiv 2510.17171); null draws any token in any step",
    )
    head: SamplerConfig = Field(description="how a token is sampled; of the kind of generator.head")
    shard_images: int = Field(
        gt=0, description="images in a file of generated images, which one process makes"
    )


@dataclass(frozen=True)
class SamplingNoise:
    """All randomness of a batch of generated images, by sample and position.

    Attributes:
        orders: Order of each image's tokens, of which the last is generated first.
        initial: Initial noise of each token.
        steps: Noise of the head's own steps.
        later: With order `confidence`, a position is drawn in every generation step until it is
            kept; after the first step, this replaces `initial`.
    """

    orders: Int[Tensor, "B N"]
    initial: Float[Tensor, "B N C"]
    steps: Float[Tensor, "S B N C"]
    later: Float[Tensor, "G B N C"] | None = None

    def to(self, device: torch.device) -> "SamplingNoise":
        """Return the same noise on another device."""
        return SamplingNoise(
            self.orders.to(device),
            self.initial.to(device),
            self.steps.to(device),
            None if self.later is None else self.later.to(device),
        )

    def at(
        self, positions: Int[Tensor, "B M"], step: int = 0, num_noises: int | None = None
    ) -> Noise:
        """Return the head's noise for some positions in a generation step, as rows.

        Where the head takes fewer steps than there is noise for, the noise of the first is used.
        """
        initial = self.initial if self.later is None or step == 0 else self.later[step - 1]
        index = masking.expand_index(positions, initial.shape[2])  # (B, M, C)
        used = self.steps[:num_noises]
        steps = used.gather(2, index.expand(len(used), -1, -1, -1))  # (S, B, M, C)
        return Noise(initial.gather(1, index).flatten(0, 1), steps.flatten(1, 2))


def draw_noise(model: MAR, indices: Sequence[int], config: SampleConfig) -> SamplingNoise:
    """Draw the randomness of the samples `indices`, each from (seed, index) alone.

    So an image does not depend on its batch or on the number of processes. Its noise does not
    depend on the number of generation steps either, except with order `confidence`: there each
    position has a draw of its own in every step, since otherwise a draw from the tail of the
    distribution would stay improbable to the end. The draws are made on the CPU, so every device
    gets the same.
    """
    num_later = config.num_steps - 1 if config.order == "confidence" else 0
    counts = [1, config.head.num_noises, num_later]
    size = (sum(counts), model.num_tokens, model.channels)
    rngs = [seeds.make_rng(config.seed, index) for index in indices]
    orders = torch.cat([masking.sample_orders(1, model.num_tokens, rng) for rng in rngs])
    if config.order == "raster":
        orders = masking.raster_orders(len(orders), model.num_tokens, orders.device)
    noise = torch.stack([torch.randn(size, generator=rng) for rng in rngs], dim=1)
    initial, steps, later = torch.split(noise, counts)
    return SamplingNoise(orders, initial[0], steps, later if num_later else None)


def guidance_at(config: SampleConfig, num_known: int, num_tokens: int) -> float:
    """Return the guidance scale of a step after which `num_known` tokens are known."""
    if config.guidance_schedule == "constant":
        return config.guidance_scale
    return 1 + (config.guidance_scale - 1) * num_known / num_tokens


OnTokens = Callable[[Tensor, Tensor], None]


@dataclass(frozen=True)
class KnownTokens:
    """Tokens that are given: a generation fills in the others (inpainting, outpainting, edits)."""

    tokens: Shaped[Tensor, "B N C"]
    mask: Bool[Tensor, " N"]  # True = hidden, to be generated


@torch.no_grad()
def generate(
    model: MAR,
    given: Shaped[Tensor, "B ..."],
    noise: SamplingNoise,
    config: SampleConfig,
    *,
    known: KnownTokens | None = None,
    cached: bool = True,
    on_step: Callable[[int], None] | None = None,
    on_tokens: OnTokens | None = None,
) -> Shaped[Tensor, "B c H W"]:
    """Generate normalised latents, or code indices, of the given classes or texts.

    Args:
        model: The model, in evaluation mode.
        given: The class of each image, or its text (`mar.model.conditions`).
        noise: The randomness of each image.
        config: How to sample; with known tokens, no more steps are taken than tokens are hidden.
        known: Tokens to keep.
        cached: Whether causal attention keeps keys and values.
        on_step: Is called after each generation step with the number of tokens known in an image.
        on_tokens: Is called after each generation step with all tokens (B, N, C), and with the
            positions (B, M) of those that are still to be drawn.

    Raises:
        ValueError: the config does not fit the model.
    """
    check_fit(config, model.config, model.num_tokens)
    tokens = noise.initial.new_zeros(
        noise.initial.shape, dtype=torch.int64 if model.config.is_discrete else None
    )  # (B, N, C)
    orders, hidden = noise.orders, model.num_tokens
    board, in_board = checkerboard(model.rows, model.columns), (model.num_tokens + 1) // 2
    if config.reconstruction_steps is not None:
        orders = last_in_orders(orders, board)
    if known is not None:
        tokens, orders = known.tokens, _hidden_first(orders, known.mask, model)
        hidden, in_board = int(known.mask.sum()), int((known.mask & board.to(orders.device)).sum())
    counts = hidden_counts(
        config.num_steps, config.reconstruction_steps, in_board, hidden - in_board
    )
    samplers = [config.head.at_step(step, len(counts)) for step in range(len(counts))]
    draw = _Drawing(model, given, orders, noise, config, samplers, cached=cached)
    for step, num_left in enumerate(counts):
        # The original's linear schedule counts one token as hidden in the last step.
        scale = guidance_at(config, model.num_tokens - max(num_left, 1), model.num_tokens)
        visible = orders[:, hidden:].sort(dim=1).values  # (B, V)
        if config.order == "confidence":
            ranked, values = draw.surest_last(tokens, visible, orders[:, :hidden], scale, step)
            orders = torch.cat([ranked, orders[:, hidden:]], dim=1)
            drawn, values = ranked[:, num_left:], values[:, num_left:]  # (B, M), (B, M, C)
        else:
            drawn = orders[:, num_left:hidden].sort(dim=1).values  # (B, M)
            values = draw(tokens, visible, drawn, scale, step)
        tokens = tokens.scatter(1, masking.expand_index(drawn, model.channels), values)
        hidden = num_left
        if on_step is not None:
            on_step(model.num_tokens - hidden)
        if on_tokens is not None:
            on_tokens(tokens, orders[:, :hidden])
    return model.unpatchify(tokens)


class _Drawing:
    """Samples the tokens of one generation."""

    def __init__(
        self,
        model: MAR,
        given: Shaped[Tensor, "B ..."],
        orders: Int[Tensor, "B N"],
        noise: SamplingNoise,
        config: SampleConfig,
        samplers: Sequence[SamplerSection],
        *,
        cached: bool,
    ) -> None:
        self.head = model.head
        self.noise = noise
        self.samplers = samplers  # of each generation step
        self.copies = 1 if config.guidance_scale == 1 else 2  # with condition, without
        self.predict: Predictor = model.predictor(
            given, orders, guided=self.copies == 2, cached=cached
        )

    def __call__(
        self,
        tokens: Shaped[Tensor, "B N C"],
        visible: Int[Tensor, "B V"],
        drawn: Int[Tensor, "B M"],
        scale: float,
        step: int,
    ) -> Shaped[Tensor, "B M C"]:
        """Sample the tokens of one generation step."""
        condition = self._condition(tokens, visible, drawn, scale)
        sampler = self.samplers[step]
        noise = self.noise.at(drawn, step, sampler.num_noises)
        values = self.head.sample(condition, noise, sampler)
        return values.reshape(*drawn.shape, -1)

    def surest_last(
        self,
        tokens: Shaped[Tensor, "B N C"],
        visible: Int[Tensor, "B V"],
        hidden: Int[Tensor, "B M"],
        scale: float,
        step: int,
    ) -> tuple[Int[Tensor, "B M"], Shaped[Tensor, "B M C"]]:
        """Sample all hidden tokens; return positions and tokens, the most probable draws last."""
        hidden = hidden.sort(dim=1).values
        condition = self._condition(tokens, visible, hidden, scale)
        values, probability = self.head.sample_with_probability(
            condition, self.noise.at(hidden, step), self.samplers[step]
        )  # (B M, C), (B M, 1)
        rank = probability.reshape(hidden.shape).argsort(dim=1, stable=True)  # (B, M)
        return hidden.gather(1, rank), masking.gather_tokens(
            values.reshape(*hidden.shape, -1), rank
        )

    def _condition(self, tokens: Tensor, visible: Tensor, drawn: Tensor, scale: float) -> Condition:
        """Return z of the drawn positions as rows, with what is given and, if guided, without."""
        z = self.predict(tokens, visible, drawn)  # (B or 2 B, M, D)
        given, *null = z.flatten(0, 1).chunk(self.copies)
        return Condition(given, null[0] if null else None, scale)


def check_fit(config: SampleConfig, generator: GeneratorConfig, num_tokens: int) -> None:
    """Check that a model can be sampled as `config` says.

    Raises:
        ValueError: the message names the key, what was found and what was expected.
    """
    if config.head.kind != generator.head.kind:
        raise ValueError(
            f"sample.head.kind: must be generator.head.kind, {generator.head.kind!r}, "
            f"got {config.head.kind!r}"
        )
    if config.order == "confidence" and (
        not HEADS[generator.head.kind].head.has_probabilities or generator.attention == "causal"
    ):
        raise ValueError(
            "sample.order: 'confidence' needs probabilities of tokens in any order: "
            "generator.head.kind cross_entropy and generator.attention bidirectional"
        )
    if config.guidance_scale > 1 and generator.label_drop == 0:
        raise ValueError(
            "sample.guidance_scale: must be 1 where generator.label_drop is 0, as the prediction "
            f"without class or text is not trained; got {config.guidance_scale}"
        )
    # A bidirectional model trained with random orders can generate in any order.
    learnt_any = generator.order == "random" and generator.attention == "bidirectional"
    if config.order != generator.order and not learnt_any:
        raise ValueError(
            f"sample.order: must be generator.order, {generator.order!r}, got {config.order!r}"
        )
    check_halves(
        config.num_steps,
        config.reconstruction_steps,
        any_order=learnt_any and config.order != "confidence",
    )
    if not 1 <= config.num_steps <= num_tokens:
        raise ValueError(
            f"sample.num_steps: must be 1 to {num_tokens}, the tokens of an image, "
            f"got {config.num_steps}"
        )
    if generator.attention == "causal" and config.num_steps != num_tokens:
        raise ValueError(
            f"sample.num_steps: must be {num_tokens}, the tokens of an image, as causal attention "
            f"draws them one by one; got {config.num_steps}"
        )


def _hidden_first(
    orders: Int[Tensor, "B N"], mask: Bool[Tensor, " N"], model: MAR
) -> Int[Tensor, "B N"]:
    """Move known positions to the end of the orders, as if they had been generated first.

    Raises:
        ValueError: the model was not trained to condition on any set of tokens.
    """
    if model.config.attention == "causal":
        raise ValueError("known tokens need generator.attention bidirectional, got causal")
    if model.config.order == "raster":
        raise ValueError("known tokens need generator.order random, got raster")
    return last_in_orders(orders, ~mask)


def balanced_labels(
    num_images: int, classes: Sequence[int] | None, num_classes: int
) -> Int[Tensor, " B"]:
    """Cycle through classes (None: all), so that every prefix of the images is balanced.

    Raises:
        ValueError: a class does not exist.
    """
    chosen = list(range(num_classes)) if classes is None else list(classes)
    for label in chosen:
        if not 0 <= label < num_classes:
            raise ValueError(
                f"sample.labels: {label} is not a class, they are 0 to {num_classes - 1}"
            )
    return torch.tensor([chosen[index % len(chosen)] for index in range(num_images)])
