"""The Diffusion Loss: a head that models one continuous token by diffusion (MAR, section 3.2).

Shapes: B batch, M tokens with a loss, R rows (tokens, of any images), C channels of a token, D
width of z, A independent draws of (t, eps) for each token, S sampling steps, T training steps, W
width of the denoiser.
"""

from functools import lru_cache
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional

from mar.config import Config
from mar.heads import diffusion, diffusion_sampling
from mar.heads.annealing import AnnealedSampler
from mar.heads.base import Condition, Draws, Head, Noise, SamplerSection
from mar.heads.denoiser import Denoiser, NamedOrCustom, denoiser_size, time_features
from mar.heads.denoising import Denoising
from mar.precision import without_autocast


class DiffusionConfig(Config):
    """Section `generator.head` for `kind: diffusion`."""

    kind: Literal["diffusion"]
    size: NamedOrCustom = Field(
        description="the denoiser: a size of the paper by name, or blocks and width"
    )
    noise_samples_per_token: int = Field(
        gt=0, le=1000, description="independent (t, eps) for each token (paper: 4)"
    )

    @property
    def denoiser_width(self) -> int:
        """Return the width of the denoiser."""
        return denoiser_size(self.size).width


ORDERS: dict[str, Literal[1, 2]] = {"ddim": 1, "dpm++": 2}  # of the solvers without noise


class DiffusionSampler(AnnealedSampler):
    """Section `sample.head` for `kind: diffusion`."""

    fewest: ClassVar[int] = 2

    kind: Literal["diffusion"]
    num_steps: int = Field(
        ge=2, le=diffusion.TRAINING_STEPS, description="denoising steps of a token"
    )
    final_num_steps: int | None = Field(
        ge=2,
        description="denoising steps of a token in the last generation step, to which num_steps "
        "falls (DiSA: from 50 to 5); null for num_steps in all of them",
    )
    solver: Literal["ancestral", "ddim", "dpm++"] = Field(
        description="ancestral (MAR's, with noise in each denoising step), or without noise, for "
        "few steps: ddim (order 1), dpm++ (DPM-Solver++ 2M, order 2, as many network calls)"
    )
    temperature: float = Field(
        gt=0,
        description="scale of the noise added in each denoising step; 1 with the solvers that add "
        "none",
    )
    x_0_bound: float | None = Field(
        gt=0, description="clip predicted tokens, in units of latent std; null is faithful to MAR"
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        description="of the products in the denoiser's blocks; all else of it is float32, whose "
        "products are TensorFloat32 on a GPU"
    )

    @property
    def num_noises(self) -> int:
        """Return the number of denoising steps if each adds noise, else 0."""
        return self.num_steps if self.solver == "ancestral" else 0

    @field_validator("temperature")
    @classmethod
    def _scales_noise(cls, value: float, info: Any) -> float:
        solver = info.data.get("solver")  # absent where it is itself refused
        if value != 1 and solver in ORDERS:
            raise ValueError(
                f"must be 1 where sample.head.solver is {solver}, which adds no noise to scale"
            )
        return value


class DiffusionLoss(Head):
    """Train and sample p(x | z) of a token by diffusion."""

    has_released_layout: ClassVar[bool] = True
    time_features: Tensor

    def __init__(self, config: DiffusionConfig, *, channels: int, z_width: int) -> None:
        super().__init__()
        self.channels = channels
        self.noise_samples_per_token = config.noise_samples_per_token
        self.schedule = diffusion.training_schedule()
        features = time_features(self.schedule.timesteps)  # (T, F), once for all steps
        self.register_buffer("time_features", features, persistent=False)
        size = denoiser_size(config.size)
        self.denoiser = Denoiser(
            size, channels=channels, out_channels=2 * channels, z_width=z_width
        )

    def initialize(self, rng: torch.Generator) -> None:
        """Set every weight, as `Denoiser.initialize` says."""
        self.denoiser.initialize(rng)

    def draw(self, batch: int, num_tokens: int, rng: torch.Generator) -> Draws:
        """Draw (t, eps) for the tokens that have a loss."""
        shape = (batch, num_tokens, self.noise_samples_per_token)
        device = rng.device
        t = torch.randint(self.schedule.num_steps, shape, generator=rng, device=device)
        eps = torch.randn(*shape, self.channels, generator=rng, device=device)
        return t, eps

    def forward(
        self, z: Float[Tensor, "B M D"], x_0: Float[Tensor, "B M C"], draws: Draws
    ) -> Float[Tensor, "B M A"]:
        """Return the loss of each token and draw; training minimises their mean."""
        t, eps = draws  # (B, M, A), (B, M, A, C)
        repeated = x_0[:, :, None].expand_as(eps).flatten(0, 2).float()  # (B * M * A, C)
        x_t = diffusion.add_noise(self.schedule, repeated, t.flatten(), eps.flatten(0, 2))
        # Embed the z of a token once for all of its draws, and each of the T times once.
        time = self.denoiser.time_mlp(self.time_features)  # (T, W)
        y = self.denoiser.embed_z(z)[:, :, None] + functional.embedding(t, time)  # (B, M, A, W)
        output = self.denoiser.denoise(x_t, y.flatten(0, 2))  # (B * M * A, 2 C)
        terms = self.schedule(output, repeated, x_t, t.flatten(), eps.flatten(0, 2))
        return (terms.noise + terms.variational).reshape(t.shape)

    @torch.no_grad()
    def sample(
        self, condition: Condition, noise: Noise, sampler: SamplerSection
    ) -> Float[Tensor, "R C"]:
        """Sample a token for each row, by ancestral sampling or by solving the ODE.

        Guidance combines the two noise estimates at the same x_t; the variance is the one predicted
        with the class (MAR, section 3.2). Autocast is off: the first step from pure noise
        multiplies an error of the estimate by hundreds. With all of the denoiser in bfloat16, the
        spread of x_t would be 10 % too large with 100 steps, and six times too large with 10.
        """
        assert isinstance(sampler, DiffusionSampler)
        steps, features = _sampling_steps(sampler.num_steps, condition.z.device)
        with without_autocast(condition.z.device):
            dtype = getattr(torch, sampler.precision)
            times = self.denoiser.time_mlp(features)  # (S, W)
            denoise = Denoising(self.denoiser, condition, times, dtype)
            if sampler.solver in ORDERS:
                return diffusion_sampling.solve(
                    denoise,
                    steps,
                    noise.initial,
                    order=ORDERS[sampler.solver],
                    x_0_bound=sampler.x_0_bound,
                )
            return diffusion_sampling.sample(
                denoise,
                steps,
                noise.initial,
                noise.steps,
                temperature=sampler.temperature,
                x_0_bound=sampler.x_0_bound,
            )


@lru_cache(maxsize=128)  # an annealed generation needs one for each number of steps
def _sampling_steps(
    num_steps: int, device: torch.device
) -> tuple[list[diffusion_sampling.Step], Tensor]:
    """Return the steps and, on the device, the features (S, F) of their times."""
    schedule = diffusion.sampling_schedule(num_steps)
    return diffusion_sampling.steps_of(schedule), time_features(schedule.timesteps).to(device)
