"""From pixels to units of mass: checks of a projection's arguments, and the scale of an image."""

from dataclasses import dataclass

import torch
from torch import Tensor

from wotlab._base import checks


@dataclass(frozen=True)
class Scaled:
    """A projection's input in float64, each image scaled to mass 1 over all its channels.

    `x` stays in pixels, because the plans are built from it; x / mass has mass 1. A black image
    is alone in its ball: its budget is 0, and its mass is taken as 1.
    """

    x: Tensor  # (B, C, H, W), pixels
    w: Tensor  # (B, C, H, W), units of mass
    mass: Tensor  # (B, 1, 1, 1), |x|_1
    eps: Tensor  # (B,), pixels of distance


def scaled(x: Tensor, w: Tensor, eps: float | Tensor) -> Scaled:
    """Check x, w and eps, and scale them.

    Raises
    ------
    ValueError
        For x outside [0, 1], w not finite or unlike x, eps negative or not finite.
    """
    checks.images("x", x, black=True)
    checks.tensor("w", w, 4, "(B, C, H, W)")
    checks.same_shape("w", w, "x", x)
    x, w = x.detach().double(), w.detach().double()
    mass = x.sum((1, 2, 3), keepdim=True)
    black = mass == 0
    eps = budgets(eps, x).masked_fill(black.flatten(), 0)
    mass = mass.masked_fill(black, 1)
    return Scaled(x, w / mass, mass, eps)


def budgets(eps: float | Tensor, x: Tensor) -> Tensor:
    """The budget of each image, (B,), in float64."""
    if not isinstance(eps, Tensor):
        checks.positive("eps", eps, zero=True)
        return x.new_full((len(x),), eps, dtype=torch.double)
    if eps.shape not in ((), (len(x),)):
        raise ValueError(f"eps must be a number or have shape ({len(x)},); got {tuple(eps.shape)}")
    eps = eps.detach().to(x.device, torch.double).expand(len(x))
    if not bool((eps.isfinite() & (eps >= 0)).all()):
        raise ValueError(f"eps must be finite and at least 0; got {eps.tolist()}")
    return eps


def column(value: Tensor) -> Tensor:
    """One number an image, (B,), so that it meets images (B, C, H, W)."""
    return value[:, None, None, None]
