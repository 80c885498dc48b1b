"""What belongs to the images of a batch, one row each, when some of them leave."""

from typing import TypeVar, cast

from torch import Tensor
from torch.optim import Adam

T = TypeVar("T")


def kept(part: T, keep: Tensor) -> T:
    """The rows `keep`, booleans (B,) or places, of a tensor, or of each in a tuple or a dict."""
    if isinstance(part, Tensor):
        return cast(T, part[keep])
    if isinstance(part, tuple):
        return cast(T, tuple(kept(each, keep) for each in part))
    if isinstance(part, dict):
        return cast(T, {name: kept(each, keep) for name, each in part.items()})
    return part  # belongs to all images


def keep_rows(optimizer: Adam, keep: Tensor) -> None:
    """Keep the rows `keep`, booleans (B,), of every parameter and of what Adam knows of it."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight.data, weight.grad = weight.data[keep], None
            state = optimizer.state[weight]
            for name in ("exp_avg", "exp_avg_sq"):
                if name in state:
                    state[name] = state[name][keep]
