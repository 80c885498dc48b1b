"""Which floats to compute in."""

import torch


def wide(device: torch.device) -> torch.dtype:
    """The widest float of a device: float64, and float32 on MPS, which has nothing wider."""
    return torch.float32 if device.type == "mps" else torch.float64
