r"""The unbalanced projection of the Sinkhorn attack (Subramanyam), as printed and corrected."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wotlab._base import checks
from wotlab.ot import GroundCost
from wotlab.ot._marginals import wright_omega
from wotlab.plans import TransportPlan
from wotlab.projections import _scaling as units
from wotlab.projections._result import Projection

VARIANTS = ("corrected", "printed", "l2")
FLOOR = 1e-12  # of z where its logarithm is taken: stepped images have pixels at and below 0


@torch.no_grad()
def unbalanced_sinkhorn(
    x: Tensor,
    w: Tensor,
    ground_cost: GroundCost,
    *,
    variant: str = "corrected",
    gamma: float = 0.5,
    reg: float = 0.001,
    tau: float = 0.01,
    max_iter: int | None = None,
    tol: float = 1e-9,
) -> Projection:
    r"""Trade distance from w for unbalanced transport cost from x (Subramanyam, 2021).

    min over Pi, z >= 0 of <Pi, C> + reg sum Pi (log Pi - 1) + tau KL(Pi 1 | x)
    + tau KL(Pi^T 1 | z) + gamma/2 |z - w|^2, with KL(a | b) = sum a log(a / b) - a + b.
    In pixels as they are, with no scaling to mass 1. **No budget enters**: nothing bounds the
    distance from x to z, keeps mass, or keeps z at most 1, so this is no projection onto a ball.

    Parameters
    ----------
    x : Tensor (B, C, H, W)
        Clean images in [0, 1].
    w : Tensor (B, C, H, W)
        Stepped images: any finite values.
    ground_cost : GroundCost
        The paper's plans have no window: `GroundCost(window=None)`.
    variant : "corrected", "printed" or "l2"
        How z follows from the plan's column sums s = exp(u + beta / reg).
        "corrected": z = [gamma w - tau + sqrt((gamma w - tau)^2 + 4 gamma tau s)] / (2 gamma), the
        exact minimum; the iteration converges to the problem's optimum.
        "printed": z = w + (tau / gamma) exp(-beta / tau), eq. 15. It drops a -1, which makes every
        pixel that mass comes near brighter by tau / gamma, and stops unconverged. (Eq. 14 has a
        minus sign instead and diverges.)
        "l2": tau/2 |.|^2 in place of both KL, z = (tau s + gamma w) / (tau + gamma), eq. 36 to 40.
    gamma, reg, tau : float > 0
        Weights of the distance to w, the entropy and the marginals; the paper's 0.5,
        0.001 (its eta), 0.01.
        With these destroying mass is far cheaper than moving it, and the plan moves next to none.
    max_iter : int or None
        At most so many; 10 for "printed", as in the paper, which makes them all, otherwise 5000.
    tol : float > 0
        Converged when no pixel of z and of the plan's column sums changes by more.

    Returns
    -------
    Projection
        `image` is z, unclamped. `plan` starts near x and ends near z, as tau allows. `duals`:
        "alpha" and "beta" (B, C, H, W), the potentials in units of cost, alpha 0 where x is 0.

    Raises
    ------
    ValueError
        For x outside [0, 1], w of another shape or not finite, an unknown variant,
        weights or tol not above 0.

    Notes
    -----
    In the log domain and float64. Block updates contract by tau / (tau + reg) each: for
    tau >> reg raise `max_iter`. "printed" takes the log of z, which w below 0 can make negative,
    at no less than 1e-12.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {VARIANTS}; got {variant!r}")
    for name, value in (("gamma", gamma), ("reg", reg), ("tau", tau), ("tol", tol)):
        checks.positive(name, value)
    limit = max_iter or (10 if variant == "printed" else 5000)
    checks.count("max_iter", limit if max_iter is None else max_iter)
    task = units.scaled(x, w, 0.0)
    kernel = _Kernel(ground_cost, *x.shape[-2:], reg, x.device)
    blocks = _L2 if variant == "l2" else _Printed if variant == "printed" else _KL

    z, alpha, beta = (torch.empty_like(task.x) for _ in range(3))
    index = torch.arange(len(x), device=x.device)
    turns, converged = torch.zeros_like(index), torch.zeros_like(index, dtype=torch.bool)
    at = blocks(task.x, w.detach().double(), gamma, reg, tau)
    b, old_z, old_s = torch.zeros_like(task.x), at.w, at.x
    for turn in range(1, limit + 1):
        a = at.rows(kernel(b))
        b, s, new = at.columns(kernel(a))
        change = torch.maximum((new - old_z).abs(), (s - old_s).abs()).amax((1, 2, 3))
        old_z, old_s = new, s
        done = change <= tol
        left = (done & (variant != "printed")) | (turn == limit)
        if bool(left.any()):
            rows = index[left]
            z[rows], alpha[rows], beta[rows] = new[left], a[left], b[left]
            turns[rows], converged[rows] = turn, done[left]
            index, b, old_z, old_s = index[~left], b[~left], new[~left], s[~left]
            at = at.keep(~left)
        if len(index) == 0:
            break
    plan = (alpha[:, :, None] + kernel.scores(beta)).exp()
    duals = {"alpha": reg * alpha.masked_fill(alpha.isneginf(), 0), "beta": reg * beta}
    return Projection(
        z.to(x.dtype),
        TransportPlan(plan.to(x.dtype), ground_cost),
        {name: value.to(x.dtype) for name, value in duals.items()},
        turns,
        converged,
    )


class _Kernel:
    """log sum_j exp(v_j - C_ij / reg) over the window; C is symmetric, so for columns, too."""

    def __init__(self, cost: GroundCost, height: int, width: int, reg: float, device):
        self.cost = cost
        self.outside = ~cost.inside(height, width, device)
        self.prices = cost.costs(height, width, device, torch.double)[:, None, None] / reg

    def scores(self, v: Tensor) -> Tensor:
        return (self.cost.gather(v) - self.prices).masked_fill(self.outside, -torch.inf)

    def __call__(self, v: Tensor) -> Tensor:
        return self.scores(v).logsumexp(2)


@dataclass
class _KL:
    """Block updates with marginals held by KL; potentials in units of reg."""

    x: Tensor
    w: Tensor
    gamma: float
    reg: float
    tau: float

    def __post_init__(self):
        self.goal = self.w.clamp_min(FLOOR).log()  # log z

    def keep(self, some: Tensor) -> "_KL":
        kept = type(self)(self.x[some], self.w[some], self.gamma, self.reg, self.tau)
        kept.goal = self.goal[some]
        return kept

    def rows(self, t: Tensor) -> Tensor:
        return (self.x.log() - t) * (self.tau / (self.tau + self.reg))

    def columns(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """beta, the column sums that it makes, and z."""
        v = (self.goal - u) * (self.tau / (self.tau + self.reg))
        v = v.masked_fill(u.isneginf(), 0)  # no mass comes near: nothing depends on it
        z, self.goal = self.image(u + v, v)
        return v, (u + v).exp(), z

    def image(self, log_s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """z and its logarithm: the positive root, in the form that cancels nothing."""
        linear = self.gamma * self.w - self.tau
        s = log_s.clamp_min(-690).exp()  # a root of 0 would be a dead end where w = tau / gamma
        root = (linear.square() + 4 * self.gamma * self.tau * s).sqrt()
        bright = ((linear + root) / (2 * self.gamma)).log()
        dark = math.log(2 * self.tau) + log_s - (root - linear).log()
        log_z = torch.where(linear >= 0, bright, dark)
        return log_z.exp(), log_z


class _Printed(_KL):
    """The paper's z, from the conjugate of KL without its -1."""

    def image(self, log_s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        brighter = (self.tau / self.gamma) * (-v * (self.reg / self.tau)).exp()
        # the farther the mass, the larger beta: where none comes near, its exponential is 0
        z = self.w + torch.where(log_s.isneginf(), 0, brighter)
        return z, z.clamp_min(FLOOR).log()


class _L2(_KL):
    """Block updates with marginals held by tau/2 |.|^2: each one equation of Wright's omega."""

    def __post_init__(self):
        self.goal = self.w.clamp_min(0)  # z itself: it may be 0 here

    def rows(self, t: Tensor) -> Tensor:
        return self._potential(t, self.x)

    def columns(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        v = self._potential(u, self.goal)
        s = (u + v).exp()
        z = ((self.tau * s + self.gamma * self.w) / (self.tau + self.gamma)).clamp_min(0)
        self.goal = z
        return v, s, z

    def _potential(self, t: Tensor, goal: Tensor) -> Tensor:
        """The v with v = k (goal - m) and log m = t + v, k = tau / reg."""
        k = self.tau / self.reg
        return k * goal - wright_omega(t + k * goal + math.log(k))
