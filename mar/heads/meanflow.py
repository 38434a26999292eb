"""MeanFlow: a head that models one continuous token by the average velocity of a flow.

From x_t, the tokens of a flow at time t are x_r = x_t - (t - r) u(x_t, r, t), u being the average
of its velocity between r and t. So a token takes one evaluation of the network, or a few (MeanFlow,
arXiv 2505.13447; it is not in MAR's paper). The network is that of the Diffusion Loss, told t - r
beside t. Guidance combines average velocities; that of a guided flow would be another.

Shapes: B batch, M tokens with a loss, R rows (tokens, of any images), C channels of a token, D
width of z, A independent draws of (r, t, eps) for each token, W width of the network.
"""

import warnings
from functools import cache
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from mar.heads.base import Condition, Draws, Noise, SamplerSection
from mar.heads.denoiser import FREQUENCIES, time_features
from mar.heads.denoising import Denoising
from mar.heads.straight_path import LogitNormal, PathHead, PathSampler, PathSection, on_path
from mar.linear import Linear
from mar.precision import without_autocast


# Times of 0 to 1 are embedded as 0 to 10, not to 1000 as a flow's: the loss has the derivative of
# the network by t, which a larger scale enlarges. Ours.
TIME_SCALE = 10
SMALLEST = 1e-3  # c of the adaptive weight (MeanFlow, section 4.3)


class MeanFlowConfig(PathSection):
    """Section `generator.head` for `kind: meanflow`."""

    kind: Literal["meanflow"]
    noise_samples_per_token: int = Field(
        gt=0,
        le=1000,
        multiple_of=2,
        description="independent (r, t, eps) for each token; in half of them r = t",
    )
    times: LogitNormal | None = Field(
        description="distribution of both r and t in training: logit-normal (MeanFlow, Table 1d: "
        "mean -0.4, standard deviation 1), or null for uniform"
    )


class MeanFlowSampler(PathSampler):
    """Section `sample.head` for `kind: meanflow`."""

    kind: Literal["meanflow"]
    num_steps: int = Field(gt=0, le=10_000, description="equal steps from noise to a token")


class MeanFlow(PathHead):
    """Train and sample p(x | z) by the average velocity of x_t = (1 - t) x_0 + t eps."""

    def __init__(self, config: MeanFlowConfig, *, channels: int, z_width: int) -> None:
        super().__init__(config, channels=channels, z_width=z_width)
        width = config.denoiser_width
        self.span_mlp = nn.Sequential(
            Linear(2 * FREQUENCIES, width), nn.SiLU(), Linear(width, width)
        )

    def initialize(self, rng: torch.Generator) -> None:
        """Set every weight, as `Denoiser.initialize` says; the MLP of t - r as that of t."""
        super().initialize(rng)
        for layer in self.span_mlp:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02, generator=rng)
                nn.init.zeros_(layer.bias)

    def draw(self, batch: int, num_tokens: int, rng: torch.Generator) -> Draws:
        """Draw r, t and eps for the tokens that have a loss; r = t in the first half of draws."""
        one, other = (self.draw_times(batch, num_tokens, rng) for _ in range(2))
        eps = self.draw_eps(batch, num_tokens, rng)
        half = self.noise_samples_per_token // 2
        other = torch.cat([one[:, :, :half], other[:, :, half:]], dim=2)
        return torch.minimum(one, other), torch.maximum(one, other), eps

    def forward(
        self, z: Float[Tensor, "B M D"], x_0: Float[Tensor, "B M C"], draws: Draws
    ) -> Float[Tensor, "B M A"]:
        """Return log(s + c), s being the squared error of u (MeanFlow, equations 9 and 10).

        Its gradient is that of s, weighted by 1 / (s + c) as in the paper (section 4.3, p = 1). u
        is compared with the velocity minus (t - r) du/dt, of which no gradient is taken.
        """
        r, t, eps = draws  # (B, M, A), (B, M, A), (B, M, A, C)
        num_draws, half = t.shape[2], t.shape[2] // 2
        x_t, velocity = on_path(x_0, t, eps)  # (B, M, A, C)
        y = self.denoiser.embed_z(z)[:, :, None].expand(-1, -1, num_draws, -1)
        given = [each.flatten(0, 2) for each in (x_t, t, t - r, y)]
        u = self.average_velocity(*given).float().reshape(eps.shape)
        # Where r = t, du/dt does not matter.
        x_t, t, span, y, v = (each[:, :, half:] for each in (x_t, t, t - r, y, velocity))
        rows = [each.flatten(0, 2) for each in (x_t, t, span, y, v)]
        change = span[..., None] * self._derivative(*rows).reshape(v.shape)
        target = torch.cat([velocity[:, :, :half], v - change], dim=2)
        return ((u - target).square().sum(dim=3) + SMALLEST).log()

    def average_velocity(
        self,
        x_t: Float[Tensor, "R C"],
        t: Float[Tensor, " R"],
        span: Float[Tensor, " R"],
        y: Float[Tensor, "R W"],
    ) -> Float[Tensor, "R C"]:
        """Return u between t - span and t, given the embedded z."""
        return self.denoiser.denoise(x_t, y + self._embed_times(t, span))

    def _embed_times(self, t: Float[Tensor, " R"], span: Float[Tensor, " R"]) -> Tensor:
        time = self.denoiser.time_mlp(time_features(TIME_SCALE * t))
        return time + self.span_mlp(time_features(TIME_SCALE * span))  # (R, W)

    @torch.no_grad()
    def _derivative(
        self,
        x_t: Float[Tensor, "R C"],
        t: Float[Tensor, " R"],
        span: Float[Tensor, " R"],
        y: Float[Tensor, "R W"],
        velocity: Float[Tensor, "R C"],
    ) -> Float[Tensor, "R C"]:
        """Return du/dt along the velocity, r being fixed; in float32, and never compiled."""

        def average(x_t: Tensor, t: Tensor, span: Tensor) -> Tensor:
            return self.average_velocity(x_t, t, span, y.float())

        _load_forward_derivatives()
        tangents = (velocity, torch.ones_like(t), torch.ones_like(span))
        # A compiled function has no forward derivative.
        with without_autocast(x_t.device), torch.compiler.set_stance("force_eager"):
            return torch.func.jvp(average, (x_t, t, span), tangents)[1]

    @torch.no_grad()
    def sample(
        self, condition: Condition, noise: Noise, sampler: SamplerSection
    ) -> Float[Tensor, "R C"]:
        """Sample a token for each row in equal steps from t = 1 to t = 0.

        Everything is float32, also under autocast.
        """
        assert isinstance(sampler, MeanFlowSampler)
        num_steps, device = sampler.num_steps, condition.z.device
        with without_autocast(device):
            times = torch.arange(num_steps, 0, -1, device=device) / num_steps
            spans = torch.full_like(times, 1 / num_steps)
            times = self._embed_times(times, spans)  # (S, W)
            denoise = Denoising(self.denoiser, condition, times)
            x = sampler.temperature * noise.initial
            for step in range(num_steps):
                x = x - denoise(x, step)[0] / num_steps
            return x


@cache
def _load_forward_derivatives() -> None:
    """Take a first one, for which torch calls its own deprecated `torch.jit.script`."""
    one = torch.ones(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.func.jvp(torch.sin, (one,), (one,))
