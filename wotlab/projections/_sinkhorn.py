r"""Entropic projections onto Wasserstein balls: Wong et al. (2019) and Hu et al. (2020).

Both are one loop: dual ascent in two blocks, for the images still active. They differ in the pixel
bound and in when they stop.

In units of mass, with the plan's rows i and columns j inside the window of the ground cost,

    min  lam/2 |w - z|^2 + sum Pi log Pi
    s.t. Pi 1 = x,  Pi^T 1 = z,  <Pi, C> <= eps,  0 <= z <= r.

The plan is Pi_ij = exp(alpha_i + beta_j - psi C_ij).

1. alpha and psi together: rows that sum to x give Pi_ij = x_i softmax_j(beta_j - psi C_ij), and
   psi is the multiplier at which such a plan costs eps. Every plan here starts at x and keeps eps.
2. beta with the pixel bound's multiplier phi: the column sums s = exp(u + beta) of that plan say
   u, and log z + lam z = u + lam w is solved by Wright's omega, z capped at r. Then
   beta = lam (w - z) - phi, which is log r - u where the cap holds.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from wotlab._base import checks
from wotlab._base.batch import Batch
from wotlab.ot import GroundCost
from wotlab.ot.marginals import wright_omega
from wotlab.plans import Moves
from wotlab.projections._ascent import Momentum, multiplier
from wotlab.projections._problem import Projection, column, scaled

RULES = ("plan", "published", "dual")


@torch.no_grad()
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

    .. math:: \min_{z,\, \pi}\ \tfrac12 \lVert w - z\rVert^2
        + \mathtt{reg} \sum_{ij} \pi_{ij} \log \pi_{ij}
        \quad\text{where}\quad \pi \in \Pi(x, z),\ \langle C, \pi\rangle \le \varepsilon,\
        0 \le z \le r

    for images of mass 1, where a white pixel is :math:`r = 1 / \lVert x\rVert_1` (their eq. 7 to
    10, Algorithm 1): the exact projection as reg falls.

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

    Examples
    --------
    >>> from wotlab import GroundCost, data, projections
    >>> x, _ = data.load("digits").tensors(slice(1))
    >>> x = x.double()
    >>> found = projections.constrained_sinkhorn(x, x.flip(3), 0.1, GroundCost())
    >>> round(float(found.plan.cost()), 4), float(found.image.max()) <= 1
    (0.1, True)
    """
    if rule not in RULES:
        raise ValueError(f"rule must be one of {RULES}; got {rule!r}")
    task = scaled(x, w, eps)
    checks.positive("reg", reg)
    lam = 1 / reg  # as the papers write it
    checks.positive("tol", tol)
    checks.count("max_iter", max_iter)
    checks.flags(bound=bound)
    beta, psi = _start(task.x, warm)
    cap = 1 / task.mass if bound else torch.full_like(task.mass, torch.inf)
    moves = Moves(task.x, ground_cost)
    index, age = torch.arange(len(x), device=x.device), torch.ones_like(psi)
    free = task.eps > 0  # an image whose budget is 0 has nothing to look for: it stays x
    found = {"z": torch.zeros_like(beta), "beta": beta, "psi": psi}
    found |= {"iterations": torch.zeros_like(index), "converged": ~free}
    at = _Active(index=index, **vars(task), moves=moves, cap=cap, beta=beta, psi=psi)
    at.z = (task.w - beta / lam).clamp_min(0).minimum(cap)
    at.dual, at.momentum = torch.full_like(psi, torch.nan), Momentum(last=beta, age=age)
    at = at.select(free)
    for turn in range(1, max_iter + 1):
        if len(at.index) == 0:
            break
        plan, lse = at.rows(0.1 * tol)
        if rule == "plan":
            short = (at.column - at.z).abs().sum((1, 2, 3))
            done = (at.moves.cost(plan) <= at.eps * (1 + tol)) & (short <= tol)
        elif rule == "published":
            off = (at.z.sum((1, 2, 3)) - 1).abs()  # of the total: not where the mass lies
            done = (at.moves.cost(plan) <= at.eps * (1 + tol)) & (off <= tol)
        else:
            value = at.value(lse, lam)
            done = (value - at.dual).abs() <= tol * value.abs()
            at.dual = value
        known = {"z": at.z, "beta": at.beta, "psi": at.psi, "converged": done}
        at = at.leave(done | (turn == max_iter), found, iterations=turn, **known)
        at.columns(lam, momentum=rule != "published")

    z, beta, psi = found["z"], found["beta"], found["psi"]
    phi = torch.where(z < cap, 0, lam * (task.w - z) - beta).clamp_min(0)
    shares, _ = _softmax(_reach(moves, beta) - psi[moves.image_index] * moves.costs)
    shares = torch.where(free[moves.image_index], shares, moves.identity())
    image = torch.where(column(free), z * task.mass, task.x)
    image = image.clamp(0, 1) if bound else image  # z <= r up to rounding
    plan = shares * moves.mass
    value = (task.w - image / task.mass).square().sum((1, 2, 3)) / 2
    value = value + reg * moves.total(torch.xlogy(plan, plan).sum(0))
    duals = {"beta": beta, "phi": phi, "psi": psi}
    ends = found["iterations"], found["converged"]
    return Projection(image, moves.plan(shares), value, duals, *ends).to(x.dtype)


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

    .. math:: \min_{z,\, \pi}\ \tfrac12 \lVert w - z\rVert^2
        + \mathtt{reg} \sum_{ij} \pi_{ij} \log \pi_{ij}
        \quad\text{where}\quad \pi \in \Pi(x, z),\ \langle C, \pi\rangle \le \varepsilon

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

    Examples
    --------
    >>> from wotlab import GroundCost, data, projections
    >>> x, _ = data.load("digits").tensors(slice(1))
    >>> x = x.double()
    >>> found = projections.projected_sinkhorn(x, 2 * x.flip(3), 0.3, GroundCost())
    >>> round(float(found.plan.cost()), 3), float(found.image.max()) > 1  # no bound on pixels
    (0.3, True)
    """
    checks.flags(clamp=clamp)
    found = constrained_sinkhorn(
        x, w, eps, ground_cost, reg=reg, tol=tol, rule="dual", max_iter=max_iter, bound=False,
        warm=warm,
    )  # fmt: skip
    return replace(found, image=found.image.clamp(0, 1)) if clamp else found


class _Active(Batch):
    """The images that have not converged, in units of mass.

    Of the problem w, mass, eps, the moves, and `cap`, the brightness r; of the iteration beta,
    psi, z, the sums of the plan's columns, the momentum of beta, and the dual's last value.
    """

    beta: Tensor
    psi: Tensor
    z: Tensor

    def rows(self, slack: float) -> tuple[Tensor, Tensor]:
        """Block 1: the plan's shares (K, N), and the log of what the softmax divided by (N,)."""
        moves, reach = self.moves, _reach(self.moves, self.beta)

        def spent(psi: Tensor) -> tuple[Tensor, ...]:
            shares, lse = _softmax(reach - psi[moves.image_index] * moves.costs)
            mean = (shares * moves.costs).sum(0)
            spread = (shares * moves.costs**2).sum(0) - mean**2
            return moves.total(mean * moves.mass), -moves.total(spread * moves.mass), shares, lse

        self.psi, shares, lse = multiplier(spent, self.eps, self.psi, slack)
        self.column = moves.push_forward(shares) / self.mass
        return shares, lse

    def columns(self, lam: float, momentum: bool) -> None:
        """Block 2, and a step of momentum beyond it, given up where it no longer climbs.

        A sum that underflows gives z = 0 and the largest beta; the next iteration corrects it.
        """
        climb = self.z - self.column  # gradient of the dual in beta
        u = self.column.log() - self.beta
        free = wright_omega(u + lam * self.w + math.log(lam)) / lam
        z = torch.minimum(free, self.cap)
        best = torch.where(free > self.cap, self.cap.log() - u, lam * (self.w - z))
        self.beta = self.momentum.beyond(best, climb) if momentum else best
        self.z = (self.w - self.beta / lam).clamp_min(0).minimum(self.cap)

    def value(self, lse: Tensor, lam: float) -> Tensor:
        """The dual of the problem without its constant, at rows just solved: (B,)."""
        ends = lam / 2 * (self.w - self.z).square() + self.beta * self.z
        starts = (self.moves.mass.log() - lse) * self.moves.mass
        return ends.sum((1, 2, 3)) + self.moves.total(starts) - self.psi * self.eps


def _reach(moves: Moves, beta: Tensor) -> Tensor:
    """beta where each move ends, (K, N)."""
    return moves.gather(beta).masked_fill_(moves.outside, -torch.inf)


def _softmax(score: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax over the steps, in place, and the log of what it divides by."""
    top = score.amax(0)
    shares = score.sub_(top).exp_()
    total = shares.sum(0)
    shares /= total
    return shares, total.log() + top


def _start(like: Tensor, warm: dict[str, Tensor] | None) -> tuple[Tensor, Tensor]:
    """beta and psi to start from: 0 and 1, or those of an earlier call."""
    beta, psi = torch.zeros_like(like), torch.ones_like(like[:, 0, 0, 0])
    if warm is None:
        return beta, psi
    checks.instance("warm", warm, dict)
    for name, shape in (("beta", beta.shape), ("psi", psi.shape)):
        value = warm.get(name)
        if not isinstance(value, Tensor) or value.shape != shape:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"warm must hold {name!r} of shape {tuple(shape)}, as in the duals of an "
                f"earlier call on images of this shape; got {found}"
            )
        if not bool(value.isfinite().all()):
            raise ValueError(f"warm[{name!r}] must be finite")
    return warm["beta"].to(like, copy=True), warm["psi"].to(like).clamp_min(0)
