r"""Entropic projections onto Wasserstein balls: Wong et al. (2019) and Hu et al. (2020).

Both run the loop of `_block_ascent.py`; they differ in the pixel bound and in when they stop.
"""

from dataclasses import replace

from torch import Tensor

from wotlab.ot import GroundCost
from wotlab.projections._block_ascent import block_ascent
from wotlab.projections._problem import Projection

RULES = ("plan", "published", "dual")


def constrained_sinkhorn(
    x: Tensor,
    w: Tensor,
    eps: float | Tensor,
    ground_cost: GroundCost,
    *,
    reg: float = 1e-3,
    tol: float = 0.01,
    rule: str = "plan",
    max_iter: int = 2000,
    bound: bool = True,
    warm: dict[str, Tensor] | None = None,
) -> Projection:
    r"""Entropic projection onto the Wasserstein ball with pixels in [0, 1] (Hu et al., 2020).

    min_{z, Pi} 1/2 |w - z|^2 + reg sum Pi log Pi over plans from x to z that cost at most eps, with
    0 <= z <= r = 1 / |x|_1 (their eq. 7 to 10, Algorithm 1): the exact projection as reg falls.

    Parameters
    ----------
    x : Tensor (B, C, H, W)
        Clean images in [0, 1]. A black one comes back as it is.
    w : Tensor (B, C, H, W)
        Images to project: any finite values.
    eps : float or Tensor (B,)
        Budget in pixels of distance for an image of mass 1 (see `wotlab.WassersteinBall`).
        0 returns x itself.
    ground_cost : GroundCost
    reg : float > 0
        Weight of the entropy, for images of mass 1: 1 / lam in the papers, lam = 1000 in the
        released code. The entropy blurs: on 16 pixels the squared distance to w is 4 times the
        least possible at 0.1 and 1.02 times at 0.001; the more pixels, the smaller it has to be.
    tol : float > 0
        0.01 for attacks and 0.1 for training, as in the paper; 1e-6 to compare with an optimum.
    rule : "plan", "published" or "dual"
        When to stop. "plan", ours: the plan costs at most eps (1 + tol) and its image differs
        from z by at most tol, in l1 and as a share of the mass. "published" (Hu et al., eq. 12):
        the plan costs at most eps (1 + tol) and the total mass of z is off by at most tol; it
        does not see that z and the plan's image differ, so that z may lie far outside the ball.
        Their blocks are then climbed without momentum. (Their released code allows 0.001 in
        place of tol eps, and waits until the dual changes by less than 1e-4.) "dual" (Wong et
        al.): the dual changed by at most tol of its value in an iteration.
    max_iter : int
        Iterations of both blocks.
    bound : bool
        False: without the pixel bound z <= r; pixels may then exceed 1.
    warm : dict or None
        `duals` of an earlier call on the same x, such as the last step of an attack.

    Returns
    -------
    Projection
        `image` is z, as in the papers: in [0, 1], its mass right up to tol. `plan` starts at x
        and keeps eps to rounding; its own image, right in mass, may exceed 1 until convergence.
        `duals`: "beta" and "phi" (B, C, H, W), "psi" (B,), in units of mass.

    Raises
    ------
    ValueError
        For x outside [0, 1], w of another shape or not finite, eps negative or not
        finite, reg or tol not above 0, an unknown rule, duals of other shapes.

    Notes
    -----
    The paper's updates reach the same optimum, but take psi after alpha, not with it: its plan
    then leaves the rows x. Its cap divides by |w|_1 in places; r = 1 / |x|_1 is meant. The
    stopping test is no certificate: see `wotlab.certify`. An iteration moves beta by a share
    1 / (1 + z / reg) of what is missing, so that reg far below z converges slowly.
    Not for exact distances: `dual_projection` has no entropy, `exact_projection` no tolerance.
    """
    if rule not in RULES:
        raise ValueError(f"rule must be one of {RULES}; got {rule!r}")
    return block_ascent(x, w, eps, ground_cost, reg, tol, rule, max_iter, bound, warm)


def projected_sinkhorn(
    x: Tensor,
    w: Tensor,
    eps: float | Tensor,
    ground_cost: GroundCost,
    *,
    reg: float = 1e-3,
    tol: float = 1e-4,
    max_iter: int = 2000,
    clamp: bool = False,
    warm: dict[str, Tensor] | None = None,
) -> Projection:
    r"""Projected Sinkhorn: entropic projection with no pixel bound (Wong et al., 2019).

    min_{z, Pi} 1/2 |w - z|^2 + reg sum Pi log Pi over plans from x to z that cost at most eps
    (their eq. 6, Algorithm 2). Stops when the dual changes by at most tol of its value.

    Parameters
    ----------
    x, w, eps, ground_cost, reg, max_iter, warm
        As in `constrained_sinkhorn`; tol = 1e-4 and reg = 1 / 1000 are those of the released code.
    clamp : bool
        Clamp the image to [0, 1] afterwards, as the released attack does. That destroys the mass
        above 1, which no plan can do: the image then lies outside the ball more often than not.

    Returns
    -------
    Projection
        `plan` and `value` are those of the image before the clamp.

    Raises
    ------
    ValueError
        As `constrained_sinkhorn`.
    """
    found = block_ascent(x, w, eps, ground_cost, reg, tol, "dual", max_iter, False, warm)
    return replace(found, image=found.image.clamp(0, 1)) if clamp else found
