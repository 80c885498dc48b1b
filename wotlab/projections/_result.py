"""What a projection returns."""

from dataclasses import dataclass, field

from torch import Tensor

from wotlab.plans import TransportPlan


@dataclass(frozen=True)
class Projection:
    """Projected images, one entry an image, detached, in the dtype and on the device of x.

    Attributes
    ----------
    image : Tensor (B, C, H, W)
        The projected images.
    plan : TransportPlan or None
        A plan in units of pixels (its mass sums to that of x, not to 1). It starts at x and ends
        at `image`, both up to convergence: `plan.source()` and `plan.image()` say how far.
    duals : dict of str to Tensor
        Multipliers; handed back as `warm=`, the next call starts from them.
    iterations : Tensor, integers (B,)
        Iterations of the outer loop that each image took.
    converged : Tensor, booleans (B,)
        Whether the method's own stopping test was met. No certificate: see `wotlab.certify`.
    """

    image: Tensor
    plan: TransportPlan | None
    duals: dict[str, Tensor] = field(default_factory=dict)
    iterations: Tensor | None = None
    converged: Tensor | None = None
