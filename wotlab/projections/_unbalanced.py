r"""The unbalanced projection of the Sinkhorn attack (Subramanyam), as printed and corrected."""

import math

import torch
from torch import Tensor

from wotlab._base import checks
from wotlab._base.batch import Batch
from wotlab.ot import GroundCost
from wotlab.ot.marginals import KL, L2, Marginal, wright_omega
from wotlab.plans import TransportPlan
from wotlab.projections._problem import Projection, scaled

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
    r"""Trade distance from w for unbalanced transport cost from x (Subramanyam, 2022).

    .. math:: \min_{\pi,\, z \ge 0}\ \langle C, \pi\rangle
        + \mathtt{reg} \sum_{ij} \pi_{ij} (\log \pi_{ij} - 1)
        + \tau\, \mathrm{KL}(\pi \mathbf{1} \mid x) + \tau\, \mathrm{KL}(\pi^\top \mathbf{1} \mid z)
        + \tfrac{\gamma}{2} \lVert z - w\rVert^2

    with :math:`\mathrm{KL}(a \mid b) = \sum a \log(a / b) - a + b`.
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
        How z follows from the plan's column sums :math:`s = e^{u + \beta / \mathtt{reg}}`.
        "corrected": :math:`z = (h + \sqrt{h^2 + 4 \gamma \tau s}) / (2 \gamma)` with :math:`h =
        \gamma w - \tau`, the exact minimum; the iteration converges to the problem's optimum.
        "printed": :math:`z = w + (\tau / \gamma) e^{-\beta / \tau}`, eq. 15. It drops a -1, which
        makes every pixel that mass comes near brighter by tau / gamma, and stops unconverged.
        (Eq. 14 has a minus sign instead and diverges.)
        "l2": :math:`\tfrac{\tau}{2} \lVert\cdot\rVert^2` in place of both KL,
        :math:`z = (\tau s + \gamma w) / (\tau + \gamma)`, eq. 36 to 40.
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

    Examples
    --------
    >>> from wotlab import GroundCost, data, projections
    >>> x, _ = data.load("digits").tensors(slice(1))
    >>> x = x.double()
    >>> found = projections.unbalanced_sinkhorn(x, x.flip(3), GroundCost(window=None))
    >>> lost = 1 - float(found.plan.image().sum() / x.sum())
    >>> bool(found.converged), round(lost, 2)  # mass is destroyed, not moved
    (True, 0.38)
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {VARIANTS}; got {variant!r}")
    for name, value in (("gamma", gamma), ("reg", reg), ("tau", tau), ("tol", tol)):
        checks.positive(name, value)
    checks.instance("ground_cost", ground_cost, GroundCost)
    limit = max_iter or (10 if variant == "printed" else 5000)
    checks.count("max_iter", limit if max_iter is None else max_iter)
    task = scaled(x, w, 0.0)
    kernel = _Kernel(ground_cost, task.x, reg)
    index = torch.arange(len(x), device=x.device)
    found = {name: torch.empty_like(task.x) for name in ("z", "alpha", "beta")}
    found |= {"iterations": index * 0, "converged": index < 0}
    blocks = {"corrected": _KL, "printed": _Printed, "l2": _L2}[variant]
    at = blocks(index=index, x=task.x, w=w.detach().double(), gamma=gamma, reg=reg, tau=tau)
    at.start()
    for turn in range(1, limit + 1):
        a = at.rows(kernel(at.beta))
        at.beta, s, z = at.columns(kernel(a))
        done = torch.maximum((z - at.z).abs(), (s - at.s).abs()).amax((1, 2, 3)) <= tol
        at.z, at.s = z, s
        left = (done & (variant != "printed")) | (turn == limit)
        at = at.leave(left, found, z=z, alpha=a, beta=at.beta, iterations=turn, converged=done)
        if len(at.index) == 0:
            break
    z, alpha, beta = found["z"], found["alpha"], found["beta"]
    mass = (alpha[:, :, None] + kernel.scores(beta)).exp()
    plan = TransportPlan(mass, ground_cost)
    off: Marginal = L2(tau) if variant == "l2" else KL(tau)
    worth = off.penalty(plan.source(), task.x) + off.penalty(plan.image(), z)
    worth = (worth + gamma / 2 * (z - w).square()).sum((1, 2, 3))
    worth = worth + reg * (mass * kernel.costs + torch.xlogy(mass, mass) - mass).sum((1, 2, 3, 4))
    duals = {"alpha": reg * alpha.masked_fill(alpha.isneginf(), 0), "beta": reg * beta}
    ends = found["iterations"], found["converged"]
    return Projection(z, plan, worth, duals, *ends).to(x.dtype)


class _Kernel:
    """log sum_j exp(v_j - C_ij / reg) over the window; C is symmetric, so for columns, too."""

    def __init__(self, cost: GroundCost, x: Tensor, reg: float):
        self.cost = cost
        self.outside = ~cost.inside(x.shape[2], x.shape[3], x.device)
        self.costs = cost.costs(x.shape[2], x.shape[3], x.device, x.dtype)[:, None, None] / reg

    def scores(self, v: Tensor) -> Tensor:
        return (self.cost.gather(v) - self.costs).masked_fill(self.outside, -torch.inf)

    def __call__(self, v: Tensor) -> Tensor:
        return self.scores(v).logsumexp(2)


class _KL(Batch):
    """Block updates with marginals held by KL; potentials in units of reg.

    Images x and w, weights gamma, reg and tau; z, the column sums s and beta of the last turn.
    """

    def start(self) -> None:
        self.beta, self.s, self.z = torch.zeros_like(self.x), self.x, self.w
        self.goal = self.w.clamp_min(FLOOR).log()  # log z

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

    def start(self) -> None:
        super().start()
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
