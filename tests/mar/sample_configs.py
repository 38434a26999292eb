"""Ways of sampling from the tiny generator, for all tests that need one."""

from typing import Any

from mar.sampling.config import SampleConfig


SAMPLERS: dict[str, dict[str, Any]] = {
    "diffusion": {
        "kind": "diffusion",
        "num_steps": 4,
        "final_num_steps": None,
        "annealing": "linear",
        "solver": "ancestral",
        "temperature": 1.0,
        "x_0_bound": 3.0,
        "precision": "float32",
    },
    "flow": {
        "kind": "flow",
        "num_steps": 2,
        "final_num_steps": None,
        "annealing": "linear",
        "solver": "heun",
        "temperature": 1.0,
    },
    "meanflow": {
        "kind": "meanflow",
        "num_steps": 2,
        "final_num_steps": None,
        "annealing": "linear",
        "temperature": 1.0,
    },
    "energy": {"kind": "energy", "temperature": 1.0},
    "l2": {"kind": "l2"},
    "cross_entropy": {"kind": "cross_entropy", "temperature": 1.0},
}


def sample_config(kind: str = "diffusion", **changes: Any) -> SampleConfig:
    """Return a section `sample`; changes are of its own keys, or of the head's."""
    fields: dict[str, Any] = {
        "seed": 0,
        "num_images": 8,
        "weights": "ema",
        "labels": None,
        "prompts": None,
        "num_steps": 5,
        "order": "random",
        "guidance_scale": 2.0,
        "guidance_schedule": "linear",
        "reconstruction_steps": None,
        "head": dict(SAMPLERS[kind]),
        "shard_images": 8,
    }
    for key, value in changes.items():
        target = fields["head"] if key in {"temperature", "x_0_bound"} else fields
        target[key] = value
    return SampleConfig.model_validate(fields)
