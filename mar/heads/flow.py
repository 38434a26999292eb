"""Rectified flow: a head that models one continuous token by a straight path from noise to data.

Rectified flow is arXiv 2209.03003; it is not in MAR's paper. The network is that of the Diffusion
Loss. Sampling a token takes a few steps of an ODE solver. Where on the path the network is trained
may follow Stable Diffusion 3 (arXiv 2403.03206, "SD3").

Shapes: B batch, M tokens with a loss, R rows (tokens, of any images), C channels of a token, D
width of z, A independent draws of (t, eps) for each token, S times at which the network is called.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from mar.heads.base import Condition, Draws, Noise, SamplerSection
from mar.heads.denoising import Denoising
from mar.heads.straight_path import PathHead, PathSampler, PathSection, on_path
from mar.precision import without_autocast


Solver = Literal["euler", "adams", "heun", "midpoint"]
TIME_SCALE = 1000  # the denoiser embeds times from 0 to 1000; a flow's run from 0 to 1


class FlowConfig(PathSection):
    """Section `generator.head` for `kind: flow`."""

    kind: Literal["flow"]


class FlowSampler(PathSampler):
    """Section `sample.head` for `kind: flow`."""

    kind: Literal["flow"]
    num_steps: int = Field(gt=0, le=10_000, description="steps of the solver for a token")
    solver: Solver = Field(
        description="euler (order 1), adams (order 2, as many network calls), or with twice the "
        "calls heun or midpoint (order 2)"
    )


class RectifiedFlow(PathHead):
    """Train and sample p(x | z) by the velocity eps - x_0 of x_t = (1 - t) x_0 + t eps."""

    def draw(self, batch: int, num_tokens: int, rng: torch.Generator) -> Draws:
        """Draw t and eps for the tokens that have a loss."""
        t = self.draw_times(batch, num_tokens, rng)
        return t, self.draw_eps(batch, num_tokens, rng)

    def forward(
        self, z: Float[Tensor, "B M D"], x_0: Float[Tensor, "B M C"], draws: Draws
    ) -> Float[Tensor, "B M A"]:
        """Return the squared error of the velocity, a mean over channels."""
        t, eps = draws  # (B, M, A), (B, M, A, C)
        x_t, target = on_path(x_0, t, eps)  # (B, M, A, C)
        time = self.denoiser.embed_time(TIME_SCALE * t.flatten())  # (B * M * A, W)
        y = self.denoiser.embed_z(z)[:, :, None].expand(-1, -1, t.shape[2], -1).flatten(0, 2)
        velocity = self.denoiser.denoise(x_t.flatten(0, 2), y + time).float()
        error = velocity - target.flatten(0, 2)
        return error.square().mean(dim=1).reshape(t.shape)

    @torch.no_grad()
    def sample(
        self, condition: Condition, noise: Noise, sampler: SamplerSection
    ) -> Float[Tensor, "R C"]:
        """Sample a token for each row: integrate the velocity from t = 1 to t = 0.

        Everything is float32, also under autocast.
        """
        assert isinstance(sampler, FlowSampler)
        with without_autocast(condition.z.device):
            times = solver_times(sampler.num_steps, sampler.solver, condition.z.device)
            denoise = Denoising(
                self.denoiser, condition, self.denoiser.embed_time(TIME_SCALE * times)
            )
            return solve(
                lambda x_t, time: denoise(x_t, time)[0],
                sampler.temperature * noise.initial,
                num_steps=sampler.num_steps,
                solver=sampler.solver,
            )


def solver_times(num_steps: int, solver: Solver, device: torch.device) -> Float[Tensor, " S"]:
    """Return the times, from 1 to 0 in equal steps, by whose indices `solve` asks for velocities.

    They are the ends of the solver's steps, and for the midpoint rule their middles too.
    """
    intervals = num_steps * _intervals_per_step(solver)
    return torch.arange(intervals, -1, -1, device=device) / intervals


def _intervals_per_step(solver: Solver) -> int:
    return 2 if solver == "midpoint" else 1


def solve(
    velocity: Callable[[Tensor, int], Tensor],
    start: Float[Tensor, "R C"],
    *,
    num_steps: int,
    solver: Solver,
) -> Float[Tensor, "R C"]:
    """Integrate dx/dt = velocity(x, t) from t = 1 to t = 0 in equal steps.

    Args:
        velocity: From x (R, C) and the index of t in `solver_times`.
        start: x at t = 1.
        num_steps: Of the solver.
        solver: `euler`, `heun` (its slope is the mean of those at both ends of a step), `midpoint`
            (the slope in the middle of a step), or `adams` (Adams-Bashforth of order 2: the slope
            is extrapolated from this step's and the one's before; the first step is Euler's).
    """
    x, before = start, None
    step, intervals = 1 / num_steps, _intervals_per_step(solver)
    for time in range(0, num_steps * intervals, intervals):
        slope = here = velocity(x, time)
        if solver == "heun":
            slope = (here + velocity(x - step * here, time + 1)) / 2
        elif solver == "midpoint":
            slope = velocity(x - step / 2 * here, time + 1)
        elif solver == "adams" and before is not None:
            slope = (3 * here - before) / 2
        x, before = x - step * slope, here
    return x
