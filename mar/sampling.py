"""Generation: reveal tokens in a random order, a set at a time (MAR, section 3.4).

Shapes: B batch, N tokens of an image, M tokens drawn in a step, C channels of a token, S diffusion
steps, c channels of a latent, H W latent grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from mar import masking, seeds
from mar.config import Config
from mar.diffusion import TRAINING_STEPS, Schedule, sampling_schedule
from mar.diffusion_loss import Noise
from mar.generator import MAR


class SampleConfig(Config):
    """Section `sample` of `params.yaml`: how images are generated."""

    seed: int = Field(ge=0, description="seed of orders and noise")
    num_images: int = Field(gt=0, description="images to generate")
    labels: list[int] | None = Field(
        min_length=1,
        description="classes to cycle through; null for all of them, equally often",
    )
    num_steps: int = Field(gt=0, description="generation steps, each a set of tokens")
    num_diffusion_steps: int = Field(
        ge=2, le=TRAINING_STEPS, description="denoising steps of a token"
    )
    guidance_scale: float = Field(ge=1, description="classifier-free guidance; 1 is none")
    guidance_schedule: Literal["linear", "constant"] = Field(
        description="guidance over the generation: rising with the known tokens, or constant"
    )
    temperature: float = Field(gt=0, description="scale of the noise added in each denoising step")
    x_0_bound: float | None = Field(
        gt=0, description="clip predicted tokens, in units of latent std; null is faithful to MAR"
    )
    shard_images: int = Field(gt=0, description="images in a file of generated images")


@dataclass(frozen=True)
class SamplingNoise:
    """All randomness of a batch of generated images, by sample and position."""

    orders: Int[Tensor, "B N"]
    initial: Float[Tensor, "B N C"]
    steps: Float[Tensor, "S B N C"]

    def to(self, device: torch.device) -> "SamplingNoise":
        """Return the same noise on another device."""
        return SamplingNoise(self.orders.to(device), self.initial.to(device), self.steps.to(device))

    def at(self, positions: Int[Tensor, "B M"]) -> Noise:
        """Return the head's noise for some positions, as rows."""
        steps = torch.stack([masking.take(step, positions) for step in self.steps])  # (S, B, M, C)
        return Noise(masking.take(self.initial, positions).flatten(0, 1), steps.flatten(1, 2))


def draw_noise(
    model: MAR, indices: Sequence[int], *, seed: int, num_diffusion_steps: int
) -> SamplingNoise:
    """Draw the randomness of the samples `indices`, each from (seed, index) alone.

    So an image does not depend on the size of its batch, on the number of processes, or on the
    number of generation steps. The draws are made on the CPU, so every device gets the same.
    """
    size = (1 + num_diffusion_steps, model.num_tokens, model.channels)
    generators = [seeds.generator(seed, index) for index in indices]
    orders = [masking.sample_orders(1, model.num_tokens, generator) for generator in generators]
    noise = torch.stack([torch.randn(size, generator=g) for g in generators], dim=1)
    return SamplingNoise(torch.cat(orders), noise[0], noise[1:])


def guidance_at(config: SampleConfig, num_known: int, num_tokens: int) -> float:
    """Return the guidance scale of a step after which `num_known` tokens are known."""
    if config.guidance_schedule == "constant":
        return config.guidance_scale
    return 1 + (config.guidance_scale - 1) * num_known / num_tokens


@torch.no_grad()
def generate(
    model: MAR, labels: Int[Tensor, " B"], noise: SamplingNoise, config: SampleConfig
) -> Float[Tensor, "B c H W"]:
    """Generate normalised latents of the given classes.

    Raises:
        ValueError: there are more generation steps than tokens.
    """
    schedule = sampling_schedule(config.num_diffusion_steps).to(labels.device)
    tokens = noise.initial.new_zeros(noise.initial.shape)  # (B, N, C)
    num_tokens = model.num_tokens
    hidden = num_tokens
    for num_left in masking.num_hidden_after(num_tokens, config.num_steps):
        drawn = noise.orders[:, num_left:hidden].sort(dim=1).values  # (B, M)
        visible = noise.orders[:, hidden:].sort(dim=1).values  # (B, V)
        # The original's linear schedule counts one token as hidden in the last step.
        scale = guidance_at(config, num_tokens - max(num_left, 1), num_tokens)
        values = _draw_tokens(model, tokens, visible, drawn, labels, noise, schedule, scale, config)
        tokens = tokens.scatter(1, masking.over(drawn, model.channels), values)
        hidden = num_left
    return model.unpatchify(tokens)


def _draw_tokens(
    model: MAR,
    tokens: Float[Tensor, "B N C"],
    visible: Int[Tensor, "B V"],
    drawn: Int[Tensor, "B M"],
    labels: Int[Tensor, " B"],
    noise: SamplingNoise,
    schedule: Schedule,
    scale: float,
    config: SampleConfig,
) -> Float[Tensor, "B M C"]:
    """Draw the tokens of one generation step."""
    guided = config.guidance_scale != 1
    copies = 2 if guided else 1
    dropped = torch.arange(copies, device=labels.device).repeat_interleave(len(labels)) == 1
    condition = model.transformer.condition(labels.repeat(copies), dropped)
    z = model.transformer(
        tokens.repeat(copies, 1, 1), visible.repeat(copies, 1), condition
    )  # (B or 2 B, N, D)
    rows = masking.take(z, drawn.repeat(copies, 1)).flatten(0, 1)  # (B M or 2 B M, D)
    z_class, *z_null = rows.chunk(copies)
    values = model.head.sample(
        z_class,
        noise.at(drawn),
        schedule=schedule,
        temperature=config.temperature,
        x_0_bound=config.x_0_bound,
        z_null=z_null[0] if guided else None,
        guidance_scale=scale,
    )
    return values.reshape(*drawn.shape, -1)


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
