"""Optimisers whose parameters hold one row an image."""

from torch import Tensor
from torch.optim import Adam


def keep_rows(optimizer: Adam, keep: Tensor) -> None:
    """Keep the rows `keep`, booleans (B,), of every parameter and of what Adam knows of it."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight.data, weight.grad = weight.data[keep], None
            state = optimizer.state[weight]
            for name in ("exp_avg", "exp_avg_sq"):
                if name in state:
                    state[name] = state[name][keep]
