"""What 16-bit products in the denoiser's blocks do to the first steps and to a whole generation."""

import pytest
import torch
from sample_configs import sample_config
from torch import Tensor

from mar.heads import diffusion_sampling
from mar.heads.diffusion_sampling import Step
from mar.model.mar import MAR
from mar.sampling.generate import generate
from mar.sampling.noise import draw_noise


# Relative errors (rms): of x_t after the first step, which divides an error of the noise estimate
# by a signal near zero, without a bound, and of generated latents, with one. Five times what is
# found: 1.1e-4 and 1.5e-4 for float16, 1.2e-3 for bfloat16.
MOST = {"float32": (0.0, 0.0), "float16": (6e-4, 7e-4), "bfloat16": (6e-3, 6e-3)}


def generated(
    model: MAR, precision: str, bound: float | None, monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, Tensor]:
    """Return latents, and x_t after the first denoising step of the first tokens."""
    posterior_mean = diffusion_sampling.posterior_mean
    found: list[Tensor] = []

    def record(step: Step, x_0: Tensor, x_t: Tensor) -> Tensor:
        found.append(posterior_mean(step, x_0, x_t))
        return found[-1]

    monkeypatch.setattr(diffusion_sampling, "posterior_mean", record)
    config = sample_config()
    head = {"num_steps": 25, "precision": precision, "x_0_bound": bound}
    config = sample_config(head={**config.head.model_dump(), **head})  # pyright: ignore[reportAttributeAccessIssue]
    noise = draw_noise(model, range(8), config)
    latents = generate(model, torch.arange(8) % 5, noise, config)
    return latents, found[0]


def error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("precision", MOST)
def test_errors_of_the_first_step_and_of_a_generation(
    tiny_model: MAR, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, exact = (generated(tiny_model, p, 3.0, monkeypatch)[0] for p in (precision, "float32"))
    assert found.dtype == torch.float32
    assert error(found, exact) <= MOST[precision][1]
    first, exact_first = (
        generated(tiny_model, p, None, monkeypatch)[1] for p in (precision, "float32")
    )
    assert error(first, exact_first) <= MOST[precision][0]
    assert (error(found, exact) == 0) == (precision == "float32")
