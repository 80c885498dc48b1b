"""Threat models: the sets of images that an attack may return."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from wotlab import checks, draws, internal
from wotlab.ground import GroundCost
from wotlab.moves import Moves, repair
from wotlab.ot import wasserstein_distance
from wotlab.patches import PatchCost
from wotlab.plans import TransportPlan, certify
from wotlab.projections import constrained_sinkhorn

NOISE = 0.1  # deviation of a random start, in brightness, where eps is no brightness
INTERNAL_STEP = 0.2  # of brightness, for a ball that few pixels can use far
HU_STEP = 0.06  # of the image's mass (Hu et al., 2020, section 5)


class Ball:
    """What all threat models share: a budget, and a start for attacks that do not begin at x."""

    eps: float

    def __post_init__(self):
        checks.positive("eps", self.eps, zero=True)

    def contains(self, x: Tensor, z: Tensor) -> Tensor:
        """Whether z lies in the ball around x, by the certificate: booleans (B,)."""
        return certify(x, z, self).inside

    def noise(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """What a random start adds to the images: Gaussian, of deviation 0.1."""
        return NOISE * draws.normal(x, generator)

    def random_start(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A random image of the ball around each x: its noise, projected."""
        return self.project(x, x + self.noise(x, generator))

    def default_step(self, x: Tensor) -> Tensor | float:
        """Step of projected gradients, in units of brightness: eps / 4."""
        return self.eps / 4


@dataclass(frozen=True)
class LinfBall(Ball):
    r"""{z : |z_i - x_i| <= eps for every pixel, 0 <= z <= 1}.

    Parameters
    ----------
    eps : float >= 0
        In units of brightness, 1 from black to white.

    Raises
    ------
    ValueError
        For eps < 0 or infinite.
    """

    eps: float

    def noise(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Uniform in [-eps, eps]."""
        return self.eps * (2 * draws.uniform(x, generator) - 1)

    def distance(self, x: Tensor, z: Tensor) -> Tensor:
        """Largest change of a pixel: (B,)."""
        return (z - x).abs().amax((1, 2, 3))

    def project(self, x: Tensor, w: Tensor) -> Tensor:
        """The nearest image of the ball, pixel by pixel."""
        return torch.minimum(torch.maximum(w, x - self.eps), x + self.eps).clamp(0, 1)

    def walls(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest and the largest value that each pixel may take."""
        return (x - self.eps).clamp_min(0), (x + self.eps).clamp_max(1)

    def step(self, gradient: Tensor, size: float) -> Tensor:
        """Steepest ascent: `size` times the gradient's sign."""
        return size * gradient.sign()


@dataclass(frozen=True)
class L2Ball(Ball):
    r"""{z : |z - x|_2 <= eps, 0 <= z <= 1}.

    Parameters
    ----------
    eps : float >= 0
        In units of brightness, over all pixels and channels.

    Raises
    ------
    ValueError
        For eps < 0 or infinite.
    """

    eps: float

    def noise(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Gaussian, of length eps in the mean square."""
        return self.eps / x[0].numel() ** 0.5 * draws.normal(x, generator)

    def distance(self, x: Tensor, z: Tensor) -> Tensor:
        """Euclidean length of the change: (B,)."""
        return (z - x).flatten(1).norm(dim=1)

    def project(self, x: Tensor, w: Tensor) -> Tensor:
        """Clamped to [0, 1], then pulled towards x: in the ball, since x lies in [0, 1]."""
        change = w.clamp(0, 1) - x
        length = change.flatten(1).norm(dim=1).clamp_min(1e-30)
        return x + change * (self.eps / length).clamp(max=1)[:, None, None, None]

    def step(self, gradient: Tensor, size: float) -> Tensor:
        """Steepest ascent: the gradient scaled to length `size`."""
        length = gradient.flatten(1).norm(dim=1).clamp_min(1e-30)
        return size * gradient / length[:, None, None, None]


@dataclass(frozen=True)
class WassersteinBall(Ball):
    r"""{z : W(x, z) <= eps, each channel keeps its mass, 0 <= z <= 1} (Hu et al., 2020).

    A black image has no mass that could move: it is alone in its ball.

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
        For eps < 0 or infinite, or a cost that is no GroundCost.
    """

    eps: float
    cost: GroundCost = field(default_factory=GroundCost)

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.cost, GroundCost):
            raise ValueError(f"cost must be a GroundCost; got {self.cost!r}")

    def default_step(self, x: Tensor) -> Tensor:
        """The step of Hu et al. (2020), `hu_step`."""
        return hu_step(x, self.eps)

    def distance(self, x: Tensor, z: Tensor) -> Tensor:
        """Exact distance from x to z: (B,). See `wotlab.wasserstein_distance`."""
        return wasserstein_distance(x, z, self.cost)

    def project(self, x: Tensor, w: Tensor) -> Tensor:
        """An image of the ball near w: `constrained_sinkhorn`, repaired.

        The entropy of that projection keeps it from the nearest image by a little (lam = 1000);
        `exact_projection` gives the nearest one, slowly. Both are in `wotlab.projections`.
        """
        plan = constrained_sinkhorn(x, w, self.eps, self.cost).plan
        return self.repair(x, plan).image().clamp(0, 1)

    def repair(self, x: Tensor, plan: TransportPlan) -> TransportPlan:
        """The plan made feasible: it starts at x, its image is in [0, 1], its price at most eps.

        Any plan will do whose sources are near x, such as that of a projection which has not
        converged. What changes is as little as two closed forms need: rows are scaled to x, mass
        that overfills a pixel goes back, and the whole is blended with the plan that moves
        nothing (see `wotlab.moves.repair`). Not the nearest feasible plan.

        Raises
        ------
        ValueError
            For bad x, or a plan of another shape or ground cost.
        """
        checks.images("x", x, black=True)
        if plan.cost_model != self.cost:
            raise ValueError(f"plan must have the ball's cost, {self.cost}; got {plan.cost_model}")
        if plan.mass[:, :, 0].shape != x.shape:
            raise ValueError(
                f"plan must be one of images {tuple(x.shape)}; "
                f"got {tuple(plan.mass[:, :, 0].shape)}"
            )
        moves = Moves(x, self.cost)
        shares, _ = repair(moves, moves.shares(plan), self.eps)
        return moves.plan(shares)

    def step(self, gradient: Tensor, size: float) -> Tensor:
        """Steepest ascent in l2, scaled so that the most changed pixel moves by `size`.

        The step of Hu et al. (2020); it follows the gradient where a sign step forgets how much
        each pixel matters.
        """
        return _largest(gradient, size)


@dataclass(frozen=True)
class InternalWassersteinBall(Ball):
    r"""{z : IWD(x, z) <= eps, 0 <= z <= 1}: images made of nearly the same patches.

    Tan et al. (IWD) penalise the distance and never bound it; this is the ball that their
    defense writes down.

    Parameters
    ----------
    eps : float >= 0
        In the units of `cost`: brightness, summed over a patch's pixels and channels, for the
        mean patch. With sliding 3x3 patches and the l1 cost a change of every pixel by h costs
        at most 9 C h, and of one pixel of an image of n pixels about 9 h / n.
    cost : PatchCost
        Sliding 3x3 patches and the l1 cost by default.
    tile : int, optional
        Patches are matched only within squares of tile x tile of them: `wotlab.internal.tiled` in
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
    """

    eps: float
    cost: PatchCost = field(default_factory=PatchCost)
    tile: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.cost, PatchCost):
            raise ValueError(f"cost must be a PatchCost; got {self.cost!r}")
        if self.tile is not None:
            checks.count("tile", self.tile)

    def default_step(self, x: Tensor) -> float:
        """0.2 of brightness."""
        return INTERNAL_STEP

    def check(self, x: Tensor) -> None:
        """ValueError for images whose patches cannot be matched; attacks ask before they begin."""
        internal.tiles(x, self.cost, self.tile)

    def distance(self, x: Tensor, z: Tensor) -> Tensor:
        """Exact distance from x to z, with a tile the upper bound: (B,)."""
        return internal.tiled(x, z, self.cost, tile=self.tile)

    def project(self, x: Tensor, w: Tensor) -> Tensor:
        """An image of the ball near w. See `wotlab.internal.project`."""
        return internal.project(x, w, self.eps, self.cost, tile=self.tile)

    def step(self, gradient: Tensor, size: float) -> Tensor:
        """Along the gradient, scaled so that the most changed pixel moves by `size`."""
        return _largest(gradient, size)


def hu_step(x: Tensor, eps: float, share: float = HU_STEP) -> Tensor:
    """Step of Hu et al. (2020): `share` of each image's mass, eps / 2 of it where that is less."""
    return min(eps / 2, share) * x.sum((1, 2, 3), keepdim=True)


def _largest(gradient: Tensor, size: float) -> Tensor:
    largest = gradient.abs().amax((1, 2, 3), keepdim=True)
    return size * gradient / largest.clamp_min(torch.finfo(gradient.dtype).tiny)
