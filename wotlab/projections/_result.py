"""What a projection returns."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

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
