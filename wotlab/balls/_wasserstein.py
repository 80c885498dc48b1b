"""The Wasserstein ball: how far mass moves."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from joblib import Parallel, delayed
from torch import Tensor
from tqdm.auto import tqdm

from wotlab._base import checks
from wotlab.balls._ball import Ball
from wotlab.ot import GroundCost, exact, wasserstein_distance
from wotlab.plans import Moves, TransportPlan, repair
from wotlab.projections import constrained_sinkhorn

PART = 50  # images whose exact distances are solved at a time
HU_STEP = 0.06  # of the image's mass (Hu et al., 2020, section 5)


@dataclass(frozen=True)
class WassersteinBall(Ball):
    r"""Images made by moving mass at a cost of at most eps (Hu et al., 2020).

    .. math:: \{z : W(x, z) \le \varepsilon,\ \textstyle\sum_i z_{ci} = \sum_i x_{ci}
        \text{ for every channel } c,\ 0 \le z \le 1\}

    A black image has no mass that could move: it is alone in its ball.

    Parameters
    ----------
    eps : float >= 0
        Budget in pixels of distance (pixels^p) for an image scaled to mass 1 over all channels
        together: eps = 0.1 moves a tenth of the mass by one pixel. Papers that multiply by the
        number of pixels print eps * H * W.
    ground_cost : GroundCost
        A window of 5 pixels and |i - j|_2 by default (Wong et al., 2019). The window limits
        plans that attacks make; `distance` and `contains` use the whole grid.

    Raises
    ------
    ValueError
        For eps < 0 or infinite, or a cost that is no GroundCost.

    Examples
    --------
    >>> from wotlab import WassersteinBall, data
    >>> x, _ = data.load("digits").tensors(slice(1))
    >>> ball = WassersteinBall(0.1)
    >>> z = ball.project(x.double(), x.double().flip(3))  # towards the mirror image
    >>> bool(ball.contains(x.double(), z)), round(float(ball.distance(x.double(), z)), 2)
    (True, 0.1)
    """

    keeps_mass: ClassVar[bool] = True

    ground_cost: GroundCost = field(default_factory=GroundCost)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.instance("ground_cost", self.ground_cost, GroundCost)

    def default_step(self, x: Tensor) -> Tensor:
        """The step of Hu et al. (2020), `hu_step`."""
        return hu_step(x, self.eps)

    def distance(self, x: Tensor, z: Tensor) -> Tensor:
        """Exact distance from x to z: (B,). See `wotlab.wasserstein_distance`."""
        return wasserstein_distance(x, z, self.ground_cost)

    def spent(self, x: Tensor, z: Tensor, processes: int = 1, progress: bool = False) -> Tensor:
        """Exact distance from x to z scaled, channel by channel, to the mass that x has there."""
        return _distances(x, z, self.ground_cost, processes, progress)

    def bound(self, plan: TransportPlan) -> Tensor:
        """What the plan costs on this ball, whose window limits no distance."""
        own = replace(plan.ground_cost, p=self.ground_cost.p, norm=self.ground_cost.norm)
        return TransportPlan(plan.mass, own).cost()

    def project(self, x: Tensor, w: Tensor, max_iter: int = 2000) -> Tensor:
        """An image of the ball near w: `constrained_sinkhorn`, repaired.

        The entropy of that projection keeps it from the nearest image by a little (lam = 1000);
        `exact_projection` gives the nearest one, slowly. Both are in `wotlab.projections`.
        """
        plan = constrained_sinkhorn(x, w, self.eps, self.ground_cost, max_iter=max_iter).plan
        return self.repair(x, plan).image().clamp(0, 1)

    def project_roughly(self, x: Tensor, w: Tensor) -> Tensor:
        """The same after ten iterations."""
        return self.project(x, w, max_iter=10)

    def repair(self, x: Tensor, plan: TransportPlan) -> TransportPlan:
        """The plan made feasible: it starts at x, its image is in [0, 1], its cost at most eps.

        Any plan will do whose sources are near x, such as that of a projection which has not
        converged. What changes is as little as two closed forms need: rows are scaled to x, mass
        that overfills a pixel goes back, and the whole is blended with the plan that moves
        nothing (see `wotlab.plans.repair`). Not the nearest feasible plan.

        Raises
        ------
        ValueError
            For bad x, or a plan of another shape or ground cost.
        """
        checks.images("x", x, black=True)
        if plan.ground_cost != self.ground_cost:
            raise ValueError(
                f"plan must have the ball's cost, {self.ground_cost}; got {plan.ground_cost}"
            )
        if plan.mass[:, :, 0].shape != x.shape:
            raise ValueError(
                f"plan must be one of images {tuple(x.shape)}; "
                f"got {tuple(plan.mass[:, :, 0].shape)}"
            )
        moves = Moves(x, self.ground_cost)
        shares, _ = repair(moves, moves.shares(plan), self.eps)
        return moves.plan(shares)


def hu_step(x: Tensor, eps: float, share: float = HU_STEP) -> Tensor:
    """Step of Hu et al. (2020): `share` of each image's mass, eps / 2 of it where that is less.

    Parameters
    ----------
    x : Tensor (B, C, H, W)
        Clean images in [0, 1].
    eps : float >= 0
        Budget of the attack.
    share : float > 0
        0.06 in the paper.

    Examples
    --------
    >>> import torch
    >>> from wotlab.balls import hu_step
    >>> hu_step(torch.full((1, 1, 8, 8), 0.5, dtype=torch.float64), 0.1)
    tensor([[[[1.6000]]]], dtype=torch.float64)
    """
    return min(eps / 2, share) * x.sum((1, 2, 3), keepdim=True)


def _distances(x: Tensor, y: Tensor, cost: GroundCost, processes: int, progress: bool) -> Tensor:
    parts = list(zip(x.detach().cpu().split(PART), y.detach().cpu().split(PART), strict=True))
    work = Parallel(processes, return_as="generator")(delayed(_distance)(*p, cost) for p in parts)
    bar = tqdm(work, total=len(parts), desc="exact distances", disable=not progress, leave=False)
    return torch.cat(list(bar)).to(x.device)


def _distance(x: Tensor, y: Tensor, cost: GroundCost) -> Tensor:
    """Exact cost from x to y with each channel of y scaled to the mass that x has there."""
    dtype = x.dtype
    x, y = x.double(), y.double().clamp_min(0)
    before, after = x.sum((2, 3), keepdim=True), y.sum((2, 3), keepdim=True)
    out = torch.full_like(x[:, 0, 0, 0], torch.inf)
    black = (before == 0).flatten(1).all(1)
    out[black] = 0  # whether y is black too, `_mass_error` says
    same = ((after > 0) == (before > 0)).flatten(1).all(1) & ~black  # a channel gone black: no plan
    if bool(same.any()):
        y = torch.where(after > 0, y * (before / after.clamp_min(1e-300)), 0)[same]
        scale = torch.maximum(x[same], y).amax((1, 2, 3), keepdim=True)
        out[same] = exact(x[same] / scale, y / scale, cost).value
    return out.to(dtype)
