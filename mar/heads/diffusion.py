"""The Gaussian diffusion of one token: schedule, noising and loss terms.

Shapes: T diffusion steps, S steps kept for sampling, R rows (tokens, of any images), C channels of
a token. Symbols are DDPM's (arXiv 2006.11239) and improved DDPM's (arXiv 2102.09672, "IDDPM").
Everything here runs in float32, whatever precision the network runs in.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor, nn
from torch.nn import functional


TRAINING_STEPS = 1000  # T of the published models


class Schedule(nn.Module):
    """The constants of a diffusion with T steps, derived in float64, kept in float32.

    `timesteps[i]` is the training step that step i stands for: the network always sees that one.
    """

    beta: Tensor
    alpha_bar: Tensor
    signal: Tensor
    noise: Tensor
    posterior_variance: Tensor
    posterior_log_variance: Tensor
    posterior_x_0: Tensor
    posterior_x_t: Tensor
    ode_x_t: Tensor
    ode_x_0: Tensor
    ode_extrapolation: Tensor
    loss_table: Tensor
    timesteps: Tensor

    def __init__(self, alpha_bar: Float64[Tensor, " T"], timesteps: Int64[Tensor, " T"]) -> None:
        super().__init__()
        before = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
        beta = 1 - alpha_bar / before
        variance = beta * (1 - before) / (1 - alpha_bar)  # DDPM, equation 7
        tables = {
            "beta": beta,
            "alpha_bar": alpha_bar,
            "signal": alpha_bar.sqrt(),
            # In float64: where alpha_bar is near 1, the difference has no digits left in float32.
            "noise": (1 - alpha_bar).sqrt(),
            "posterior_variance": variance,
            # That of step 0 is zero; its logarithm is clipped to that of step 1 (IDDPM's code).
            "posterior_log_variance": torch.cat([variance[1:2], variance[1:]]).log(),
            "posterior_x_0": beta * before.sqrt() / (1 - alpha_bar),
            "posterior_x_t": (1 - before) * (1 - beta).sqrt() / (1 - alpha_bar),
        }
        # A step of the ODE by DDIM; its last step gives x_0 (DDIM, equation 12 with sigma = 0).
        tables["ode_x_t"] = (1 - before).sqrt() / tables["noise"]
        tables["ode_x_0"] = before.sqrt() - tables["signal"] * tables["ode_x_t"]
        tables["ode_extrapolation"] = _extrapolation(tables["signal"], tables["noise"])
        smallest, largest = tables["posterior_log_variance"], beta.log()
        # One row holds what the loss of a step needs, so that one operation selects it.
        rows = (
            tables["noise"],
            1 / tables["signal"],
            tables["posterior_x_0"],
            torch.exp(-smallest),
            smallest,
            (largest - smallest) / 2,
        )
        tables["loss_table"] = torch.stack(rows, dim=1)  # (T, 6)
        for name, table in tables.items():
            self.register_buffer(name, table.float(), persistent=False)
        self.register_buffer("timesteps", timesteps, persistent=False)

    @property
    def num_steps(self) -> int:
        """Return T."""
        return len(self.timesteps)

    def forward(
        self,
        output: Float[Tensor, "R C2"],
        x_0: Float[Tensor, "R C"],
        x_t: Float[Tensor, "R C"],
        t: Int[Tensor, " R"],
        eps: Float[Tensor, "R C"],
    ) -> "Loss":
        """Return the terms of the `loss`; as a module, it can be compiled."""
        return loss(self, output, x_0, x_t, t, eps)


def _extrapolation(
    signal: Float64[Tensor, " T"], noise: Float64[Tensor, " T"]
) -> Float64[Tensor, " T"]:
    """Return how far x_0 is extrapolated in each step of DPM-Solver++(2M): 1 / (2 r).

    It is 0, so order 1, in three steps: the first taken, which knows no earlier x_0; the last,
    whose result is x_0 itself; and the one before, which with evenly spaced training steps is so
    much longer than its predecessor in lambda that extrapolating overshoots (`lower_order_final` of
    the authors' code). Order 1 in single steps leaves the order of the whole at 2.
    """
    half_log_snr = (signal / noise).log()  # lambda in DPM-Solver++
    h = half_log_snr[:-1] - half_log_snr[1:]  # h[i - 1] is that of step i
    factor = torch.zeros_like(signal)
    factor[2:-1] = h[1:-1] / (2 * h[2:])
    return factor


def cosine_alpha_bar(num_steps: int) -> Float64[Tensor, " T"]:
    """Return alpha_bar of the cosine schedule, each beta at most 0.999 (IDDPM, equation 17)."""
    u = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    curve = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    beta = (1 - curve[1:] / curve[:-1]).clamp(max=0.999)
    return (1 - beta).cumprod(0)


def training_schedule() -> Schedule:
    """Return the schedule that the network is trained with."""
    return Schedule(cosine_alpha_bar(TRAINING_STEPS), torch.arange(TRAINING_STEPS))


def sampling_schedule(num_steps: int) -> Schedule:
    """Return a schedule of S evenly spaced training steps (IDDPM, section 4).

    Raises:
        ValueError: fewer than 2 or more than 1000 steps.
    """
    if not 2 <= num_steps <= TRAINING_STEPS:
        raise ValueError(f"diffusion sampling needs 2 to {TRAINING_STEPS} steps, got {num_steps}")
    stride = (TRAINING_STEPS - 1) / (num_steps - 1)
    kept = torch.tensor([round(index * stride) for index in range(num_steps)])
    return Schedule(cosine_alpha_bar(TRAINING_STEPS)[kept], kept)


def add_noise(
    schedule: Schedule, x_0: Float[Tensor, "R C"], t: Int[Tensor, " R"], eps: Float[Tensor, "R C"]
) -> Float[Tensor, "R C"]:
    """Return x_t, a sample of q(x_t | x_0) (DDPM, equation 4)."""
    rows = functional.embedding(t, torch.stack([schedule.signal, schedule.noise], dim=1))  # (R, 2)
    signal, noise = torch.split(rows, 1, dim=1)
    return signal * x_0 + noise * eps


class Loss(NamedTuple):
    """The two terms of the loss of each row; their sum is minimised (IDDPM, section 3.1)."""

    noise: Float[Tensor, " R"]
    variational: Float[Tensor, " R"]


def loss(
    schedule: Schedule,
    output: Float[Tensor, "R C2"],
    x_0: Float[Tensor, "R C"],
    x_t: Float[Tensor, "R C"],
    t: Int[Tensor, " R"],
    eps: Float[Tensor, "R C"],
) -> Loss:
    """Compare the network's output (eps_hat, v) with the noise and with the true posterior.

    The variational term, in bits per dimension, trains the variance alone: the mean is detached in
    it.
    """
    eps_hat, v = output.float().chunk(2, dim=1)  # (R, C) each
    noise, by_signal, weight, inverse_variance, lowest, half = torch.split(
        functional.embedding(t, schedule.loss_table), 1, dim=1
    )
    with torch.no_grad():  # both posteriors share the part of x_t
        x_0_hat = (x_t - noise * eps_hat) * by_signal
        distance = weight * (x_0 - x_0_hat)  # true minus predicted mean
    surplus = torch.addcmul(half, half, v)  # log variance above the lowest, which is the true one
    divergence = _kl(distance.square() * inverse_variance, surplus).mean(dim=1)
    # Step 0 has weight 1 for x_0 and none for x_t, so its mean is x_0_hat.
    likelihood = _discretised_log_likelihood(x_0, distance, surplus + lowest).mean(dim=1)
    variational = torch.where(t == 0, -likelihood, divergence)
    return Loss(functional.mse_loss(eps_hat, eps, reduction="none").mean(dim=1), variational)


def _kl(
    relative_distance: Float[Tensor, "R C"], surplus: Float[Tensor, "R C"]
) -> Float[Tensor, "R C"]:
    """Return KL(p || q) of each component, in bits.

    Args:
        relative_distance: (mean of p - mean of q)^2 / variance of p.
        surplus: log(variance of q / variance of p).
    """
    shrinkage = torch.expm1(-surplus)  # variance of p / variance of q, minus 1
    twice = torch.addcmul(surplus + relative_distance, 1 + relative_distance, shrinkage)
    return twice * (0.5 / math.log(2))


def _discretised_log_likelihood(
    x: Float[Tensor, "R C"], distance: Float[Tensor, "R C"], log_variance: Float[Tensor, "R C"]
) -> Float[Tensor, "R C"]:
    """Return log q of the bin of width 2/255 around x, in bits; the outermost bins are open.

    The bins are those of 8-bit images, for which IDDPM defined this term. Latents are not
    quantised, but MAR uses IDDPM's diffusion as it is, so the released weights were trained with
    this term.

    Args:
        x: Centres of bins.
        distance: From the mean of q to x.
        log_variance: That of q.
    """
    inverse_std = torch.exp(-0.5 * log_variance)
    edges = torch.stack([distance + 1 / 255, distance - 1 / 255])  # (2, R, C)
    upper, lower = _approximate_normal_cdf(edges * inverse_std).unbind()
    probability = upper.masked_fill(x > 0.999, 1) - lower.masked_fill(x < -0.999, 0)
    return probability.clamp(min=1e-12).log2()


def _approximate_normal_cdf(x: Float[Tensor, "2 R C"]) -> Float[Tensor, "2 R C"]:
    """Return the normal CDF by the tanh approximation that IDDPM trains with (Page, 1977)."""
    slope = math.sqrt(2 / math.pi)
    return 0.5 * (1 + torch.tanh(x * (slope + slope * 0.044715 * x.square())))
