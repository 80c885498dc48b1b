"""Which floats to compute in."""

import torch
from torch import Tensor


def wide(device: torch.device) -> torch.dtype:
    """The widest float of a device: float64, and float32 on MPS, which has nothing wider."""
    return torch.float32 if device.type == "mps" else torch.float64


def full_precision(x: Tensor) -> Tensor:
    """Images in float32 or float64, whatever they came in, detached."""
    x = x.detach().clone() if x.is_inference() else x.detach()
    return x if x.dtype == torch.float64 else x.float()
