"""Generation: reveal tokens in a random order, a set at a time (MAR, section 3.4).

Shapes: B batch, N tokens of an image, V visible tokens, M tokens drawn in a step, C channels of a
token, c channels of a latent, H W latent grid.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from mar.heads.base import Condition, SamplerSection
from mar.model import masking
from mar.model.mar import MAR
from mar.model.transformer import Predictor
from mar.sampling.config import SampleConfig, check_fit
from mar.sampling.halves import checkerboard, hidden_counts, last_in_orders
from mar.sampling.noise import SamplingNoise


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
    if known is not None:
        tokens = known.tokens
    plan = _plan(model, noise.orders, config, known)
    orders, hidden = plan.orders, plan.num_hidden
    num_steps = len(plan.num_left)
    samplers = [config.head.at_step(step, num_steps) for step in range(num_steps)]
    draw = Drawing(model, given, orders, noise, config, samplers, cached=cached)
    for step, num_left in enumerate(plan.num_left):
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


@dataclass(frozen=True)
class Plan:
    """Which tokens a generation draws, and when.

    Attributes:
        orders: Positions of each image's tokens, hidden ones before known ones; of the hidden,
            those drawn first stand last.
        num_hidden: How many are to be drawn: the first ones of an order.
        num_left: How many of these are still to be drawn after each generation step.
    """

    orders: Int[Tensor, "B N"]
    num_hidden: int
    num_left: list[int]


def _plan(
    model: MAR, orders: Int[Tensor, "B N"], config: SampleConfig, known: KnownTokens | None
) -> Plan:
    """Return which tokens each step draws, given random orders, known tokens and halves."""
    hidden = model.num_tokens
    board, in_board = checkerboard(model.rows, model.columns), (model.num_tokens + 1) // 2
    if config.reconstruction_steps is not None:
        orders = last_in_orders(orders, board)
    if known is not None:
        orders = _hidden_first(orders, known.mask, model)
        hidden, in_board = int(known.mask.sum()), int((known.mask & board.to(orders.device)).sum())
    steps = (config.num_steps, config.reconstruction_steps)
    return Plan(orders, hidden, hidden_counts(*steps, in_board, hidden - in_board))


class Drawing:
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
