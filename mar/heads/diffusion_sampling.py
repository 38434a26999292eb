"""Sampling a token by diffusion: ancestral sampling, and solvers of the ODE.

The constants of a step are numbers of the host, and each formula is a few operations that take
such numbers, since small tensors cost a GPU, and a CPU, as much as large ones.

Shapes: S sampling steps, R rows (tokens, of any images), C channels of a token. Symbols are DDPM's
(arXiv 2006.11239) and improved DDPM's (arXiv 2102.09672, "IDDPM"). Everything here runs in float32,
whatever precision the network runs in.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mar.heads.diffusion import Schedule


# Returns eps_hat (R, C) and v (R, C) of x_t (R, C) in a step, by its index in the schedule.
Denoise = Callable[[Tensor, int], tuple[Tensor, Tensor]]


class Step(NamedTuple):
    """The constants of one step of a `Schedule`, each named as its table there."""

    signal: float
    noise: float
    beta: float
    posterior_log_variance: float
    posterior_x_0: float
    posterior_x_t: float
    ode_x_t: float
    ode_x_0: float
    ode_extrapolation: float


def steps_of(schedule: Schedule) -> list[Step]:
    """Return the constants of all steps; where they are on a GPU, the program waits for them."""
    tables = torch.stack([schedule.get_buffer(name) for name in Step._fields], dim=1)
    return [Step(*(float(value) for value in row)) for row in tables.unbind()]


def predict_x_0(
    step: Step, x_t: Float[Tensor, "R C"], eps: Float[Tensor, "R C"], bound: float | None
) -> Float[Tensor, "R C"]:
    """Return the x_0 that x_t and its noise imply (DDPM, equation 15), within the bound."""
    x_0 = torch.sub(x_t, eps, alpha=step.noise).mul_(1 / step.signal)
    return x_0 if bound is None else x_0.clamp_(-bound, bound)


def posterior_mean(
    step: Step, x_0: Float[Tensor, "R C"], x_t: Float[Tensor, "R C"]
) -> Float[Tensor, "R C"]:
    """Return the mean of q(x_{t-1} | x_t, x_0) (DDPM, equations 6 and 7)."""
    return torch.add(x_0 * step.posterior_x_0, x_t, alpha=step.posterior_x_t)


def add_step_noise(
    step: Step,
    mean: Float[Tensor, "R C"],
    v: Float[Tensor, "R C"],
    noise: Float[Tensor, "R C"],
    temperature: float,
) -> Float[Tensor, "R C"]:
    """Add noise of the learned variance.

    Its logarithm lies between those of beta and of the posterior's variance: in their middle for
    v = 0, at the ends for 1 and -1 (IDDPM, equation 15).
    """
    lowest, largest = step.posterior_log_variance, math.log(step.beta)
    middle_std = math.exp((lowest + largest) / 4)
    relative_std = (v * ((largest - lowest) / 4)).exp_()
    return torch.addcmul(mean, relative_std, noise, value=temperature * middle_std)


@torch.no_grad()
def sample(
    denoise: Denoise,
    steps: Sequence[Step],
    x_T: Float[Tensor, "R C"],
    step_noise: Float[Tensor, "S R C"],
    *,
    temperature: float,
    x_0_bound: float | None,
) -> Float[Tensor, "R C"]:
    """Sample x_0 by ancestral sampling with the learned variance (IDDPM).

    Args:
        denoise: The network.
        steps: Those to take, the last first.
        x_T: Standard normal noise to begin with.
        step_noise: Standard normal noise of each step, the first step taken first; the last is not
            used, since nothing is added after it.
        temperature: Scales the noise added at each step, nothing else (MAR, section 3.2).
        x_0_bound: Clip the predicted x_0 to [-bound, bound]; None, as in MAR, does not clip.
            Samples of a briefly trained network diverge without it, since the prediction is divided
            by sqrt(alpha_bar).
    """
    x_t = x_T
    for taken, index in enumerate(reversed(range(len(steps)))):
        step = steps[index]
        eps, v = denoise(x_t, index)
        x_t = posterior_mean(step, predict_x_0(step, x_t, eps, x_0_bound), x_t)
        if index > 0:
            x_t = add_step_noise(step, x_t, v, step_noise[taken], temperature)
    return x_t


@torch.no_grad()
def solve(
    denoise: Denoise,
    steps: Sequence[Step],
    x_T: Float[Tensor, "R C"],
    *,
    order: Literal[1, 2],
    x_0_bound: float | None,
) -> Float[Tensor, "R C"]:
    """Sample x_0 by solving the probability-flow ODE: nothing is random after x_T.

    Order 1 is DDIM with eta = 0 (arXiv 2010.02502, equation 12), order 2 is DPM-Solver++(2M)
    (arXiv 2211.01095, algorithm 2), which extrapolates x_0 from this step and the one before. Both
    call the network once a step, at the training steps of ancestral sampling, and end with the x_0
    of the last call. The learned variance is not used, as no noise is added.

    Args:
        denoise: The network, of whose outputs v is not used.
        steps: Those to take, the last first.
        x_T: Standard normal noise to begin with.
        order: Of convergence.
        x_0_bound: Clip the predicted x_0 to [-bound, bound] before it is extrapolated; None does
            not clip. Without it, the first of few steps multiplies an error of eps_hat at pure
            noise by thousands.
    """
    x_t = x_T
    x_0_before = torch.zeros_like(x_T)
    for index in reversed(range(len(steps))):
        step = steps[index]
        x_0 = data = predict_x_0(step, x_t, denoise(x_t, index)[0], x_0_bound)
        if order == 2:
            data = torch.lerp(x_0_before, x_0, 1 + step.ode_extrapolation)
        x_t = torch.add(data * step.ode_x_0, x_t, alpha=step.ode_x_t)
        x_0_before = x_0
    return x_t
