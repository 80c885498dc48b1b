"""What goes into a projection, checked and in units of mass, and what comes out of it."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wotlab._base import checks
from wotlab.plans import TransportPlan


@dataclass(frozen=True)
class Projection:
    """Projected images, one entry an image, detached, in the dtype and on the device of x.

    Attributes
    ----------
    image : Tensor (B, C, H, W)
        The projected images.
    plan : TransportPlan
        A plan in units of pixels (its mass sums to that of x, not to 1). It starts at x and ends
        at `image`, both up to convergence: `plan.source()` and `plan.image()` say how far.
    value : Tensor (B,)
        What the method minimises, in the units of its own problem, at `image` and `plan`: the
        optimum where `converged`.
    duals : dict of str to Tensor
        Multipliers; handed back as `warm=`, the next call starts from them.
    iterations : Tensor, integers (B,)
        Iterations of the outer loop that each image took.
    converged : Tensor, booleans (B,)
        Whether the method's own stopping test was met. No certificate: see `wotlab.certify`.

    Examples
    --------
    >>> from wotlab import GroundCost, data, projections
    >>> x, _ = data.load("digits").tensors(slice(1))
    >>> x = x.double()
    >>> found = projections.constrained_sinkhorn(x, x.flip(3), 0.1, GroundCost())
    >>> found.image.shape, bool(found.converged), sorted(found.duals)
    (torch.Size([1, 1, 8, 8]), True, ['beta', 'phi', 'psi'])
    """

    image: Tensor
    plan: TransportPlan
    value: Tensor
    duals: dict[str, Tensor]
    iterations: Tensor
    converged: Tensor

    def to(self, dtype: torch.dtype) -> "Projection":
        """The same in another dtype of floats."""
        return replace(
            self,
            image=self.image.to(dtype),
            plan=replace(self.plan, mass=self.plan.mass.to(dtype)),
            value=self.value.to(dtype),
            duals={name: dual.to(dtype) for name, dual in self.duals.items()},
        )


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
