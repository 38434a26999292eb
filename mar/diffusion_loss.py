"""The Diffusion Loss: a head that models one continuous token (MAR, section 3.2).

Shapes: B batch, M tokens with a loss, R rows (B * M tokens), C channels of a token, D width of z,
A independent draws of (t, eps) for each token, S sampling steps, T training steps, W width of the
denoiser.

A head has `draw`, `forward` (the loss) and `sample`; the transformer knows nothing else of it.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from mar import diffusion
from mar.denoiser import Denoiser


class Draws(NamedTuple):
    """The randomness of the loss of a batch."""

    t: Int[Tensor, "B M A"]
    eps: Float[Tensor, "B M A C"]


class Noise(NamedTuple):
    """The randomness of drawing rows: `initial` is x_T, `steps` the noise of each step taken."""

    initial: Float[Tensor, "R C"]
    steps: Float[Tensor, "S R C"]


class DiffusionLoss(nn.Module):
    """Train and sample p(x | z) of a token by diffusion."""

    def __init__(
        self, *, channels: int, z_width: int, width: int, num_blocks: int, num_draws: int
    ) -> None:
        super().__init__()
        self.channels = channels
        self.num_draws = num_draws
        self.schedule = diffusion.training_schedule()
        self.denoiser = Denoiser(
            channels=channels, z_width=z_width, width=width, num_blocks=num_blocks
        )

    def initialize(self, generator: torch.Generator) -> None:
        """Set every weight."""
        self.denoiser.initialize(generator)

    def draw(self, batch: int, num_tokens: int, generator: torch.Generator) -> Draws:
        """Draw (t, eps) for the tokens that have a loss, and for those alone."""
        shape = (batch, num_tokens, self.num_draws)
        device = generator.device
        t = torch.randint(self.schedule.num_steps, shape, generator=generator, device=device)
        eps = torch.randn(*shape, self.channels, generator=generator, device=device)
        return Draws(t, eps)

    def forward(
        self, z: Float[Tensor, "B M D"], x_0: Float[Tensor, "B M C"], draws: Draws
    ) -> Float[Tensor, "B M A"]:
        """Return the loss of each token and draw; their mean is what is minimised."""
        t = draws.t.flatten()  # (B * M * A)
        eps = draws.eps.flatten(0, 2)  # (B * M * A, C)
        x_0 = x_0[:, :, None].expand_as(draws.eps).flatten(0, 2).float()  # (B * M * A, C)
        x_t = diffusion.add_noise(self.schedule, x_0, t, eps)
        # A token's draws share its z, and there are more rows than times: embed each only once.
        time = self.denoiser.embed_time(self.schedule.timesteps)  # (T, W)
        y = self.denoiser.embed_z(z)[:, :, None] + functional.embedding(draws.t, time)
        output = self.denoiser.denoise(x_t, y.flatten(0, 2))  # (B * M * A, 2 C)
        terms = diffusion.loss(self.schedule, output, x_0, x_t, t, eps)
        return (terms.noise + terms.variational).reshape(draws.t.shape)

    @torch.no_grad()
    def sample(
        self,
        z: Float[Tensor, "R D"],
        noise: Noise,
        *,
        schedule: diffusion.Schedule,
        temperature: float = 1.0,
        x_0_bound: float | None = None,
        z_null: Float[Tensor, "R D"] | None = None,
        guidance_scale: float = 1.0,
    ) -> Float[Tensor, "R C"]:
        """Draw a token for each row.

        With `z_null`, the noise estimates of class and null condition are combined, for the same
        x_t, as eps_null + scale * (eps_class - eps_null); the variance stays that of the class
        (MAR, section 3.2).
        """
        y = self.denoiser.embed_z(z if z_null is None else torch.cat([z, z_null]))  # (R or 2 R, W)

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            time = self.denoiser.embed_time(t)  # (1, W)
            if z_null is None:
                return self.denoiser.denoise(x_t, y + time)
            output = self.denoiser.denoise(torch.cat([x_t, x_t]), y + time).float()  # (2 R, 2 C)
            (eps, v), (eps_null, _) = (half.chunk(2, dim=1) for half in output.chunk(2))
            return torch.cat([eps_null + guidance_scale * (eps - eps_null), v], dim=1)

        return diffusion.sample(
            denoise,
            schedule,
            noise.initial,
            noise.steps,
            temperature=temperature,
            x_0_bound=x_0_bound,
        )
