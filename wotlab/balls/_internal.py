"""The internal Wasserstein ball: how much patches change."""

from dataclasses import dataclass, field

from torch import Tensor

from wotlab import iwd
from wotlab._base import checks
from wotlab.balls._ball import Ball
from wotlab.iwd import PatchCost

INTERNAL_STEP = 0.2  # of brightness, for a ball that few pixels can use far


@dataclass(frozen=True)
class InternalWassersteinBall(Ball):
    r"""Images made of nearly the same patches: their internal Wasserstein distance is bounded.

    .. math:: \{z : \mathrm{IWD}(x, z) \le \varepsilon,\ 0 \le z \le 1\}

    Tan et al. (IWD) penalise the distance and never bound it; this is the ball that their
    defense writes down.

    Parameters
    ----------
    eps : float >= 0
        In the units of `patch_cost`: brightness, summed over a patch's pixels and channels, for the
        mean patch. With sliding 3x3 patches and the l1 cost a change of every pixel by h costs
        at most 9 C h, and of one pixel of an image of n pixels about 9 h / n.
    patch_cost : PatchCost
        Sliding 3x3 patches and the l1 cost by default.
    tile : int, optional
        Patches are matched only within squares of tile x tile of them: `wotlab.iwd.tiled` in
        place of the exact distance. That is a ball within the ball, for images too large to be
        matched whole (more than some 100 pixels a side), and for training.

    Raises
    ------
    ValueError
        For eps < 0 or infinite, another cost, or a tile that is no positive integer.

    Notes
    -----
    Not convex. It holds images far from x in every pixel: with stride = size, x with its blocks
    in any order.

    Examples
    --------
    >>> from wotlab import InternalWassersteinBall, data
    >>> x, _ = data.load("digits").tensors(slice(1))
    >>> ball = InternalWassersteinBall(0.5)
    >>> z = ball.project(x.double(), 1 - x.double())  # towards the negative
    >>> round(float(ball.distance(x.double(), z)), 3)
    0.5
    """

    patch_cost: PatchCost = field(default_factory=PatchCost)
    tile: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.instance("patch_cost", self.patch_cost, PatchCost)
        if self.tile is not None:
            checks.count("tile", self.tile)

    def default_step(self, x: Tensor) -> float:
        """0.2 of brightness."""
        return INTERNAL_STEP

    def check(self, x: Tensor) -> None:
        """ValueError for images whose patches cannot be matched; attacks ask before they begin."""
        iwd.tiles(x, self.patch_cost, self.tile)

    @property
    def exact(self) -> bool:
        """Without a tile."""
        return self.tile is None

    def distance(self, x: Tensor, z: Tensor) -> Tensor:
        """Exact distance from x to z, with a tile the upper bound: (B,)."""
        return iwd.tiled(x, z, self.patch_cost, tile=self.tile)

    def spent(self, x: Tensor, z: Tensor, processes: int = 1, progress: bool = False) -> Tensor:
        """Distance from x to z clamped to [0, 1], where alone patches are compared."""
        return self.distance(x, z.clamp(0, 1))

    def project(self, x: Tensor, w: Tensor) -> Tensor:
        """An image of the ball near w. See `wotlab.iwd.project`."""
        return iwd.project(x, w, self.eps, self.patch_cost, tile=self.tile)
