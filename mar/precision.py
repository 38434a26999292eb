"""The widest floating-point numbers of a device."""

import torch


def widest_float(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on Apple's GPUs, which have no wider."""
    return torch.float32 if device.type == "mps" else torch.float64
