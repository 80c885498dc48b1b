"""Threat models: the sets of images that an attack may return."""

from dataclasses import dataclass, field

from torch import Tensor

from wotlab import checks
from wotlab.ground import GroundCost
from wotlab.ot import wasserstein_distance
from wotlab.plans import certify


@dataclass(frozen=True)
class WassersteinBall:
    r"""{z : W(x, z) <= eps, each channel keeps its mass, 0 <= z <= 1} (Hu et al., 2020).

    Parameters
    ----------
    eps : float >= 0
        Budget in pixels of distance (pixels^p) for an image scaled to mass 1 over all channels
        together: eps = 0.1 moves a tenth of the mass by one pixel. Papers that multiply by the
        number of pixels print eps * H * W.
    cost : GroundCost
        A window of 5 pixels and |i - j|_2 by default (Wong et al., 2019). The window limits
        plans that attacks make; `distance` and `contains` use the whole grid.

    Raises
    ------
    ValueError
        For eps < 0 or infinite.
    """

    eps: float
    cost: GroundCost = field(default_factory=GroundCost)

    def __post_init__(self):
        checks.positive("eps", self.eps, zero=True)

    def distance(self, x: Tensor, z: Tensor) -> Tensor:
        """Exact distance from x to z: (B,). See `wotlab.wasserstein_distance`."""
        return wasserstein_distance(x, z, self.cost)

    def contains(self, x: Tensor, z: Tensor) -> Tensor:
        """Whether z lies in the ball around x, by the exact certificate: booleans (B,)."""
        return certify(x, z, self).inside
