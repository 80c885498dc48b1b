r"""The loop of the entropic projections: dual ascent in two blocks, for the images still active.

In units of mass, with the plan's rows i and columns j inside the window of the ground cost,

    min  lam/2 |w - z|^2 + sum Pi log Pi
    s.t. Pi 1 = x,  Pi^T 1 = z,  <Pi, C> <= eps,  0 <= z <= r.

The plan is Pi_ij = exp(alpha_i + beta_j - psi C_ij).

1. alpha and psi together: rows that sum to x give Pi_ij = x_i softmax_j(beta_j - psi C_ij), and
   psi is the price at which such a plan costs eps. Every plan here starts at x and keeps eps.
2. beta with the pixel bound's multiplier phi: the column sums s = exp(u + beta) of that plan say
   u, and log z + lam z = u + lam w is solved by Wright's omega, z capped at r. Then
   beta = lam (w - z) - phi, which is log r - u where the cap holds.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wotlab._base import checks
from wotlab.ot import GroundCost
from wotlab.ot._marginals import wright_omega
from wotlab.plans import Moves, TransportPlan
from wotlab.projections import _budget as budget
from wotlab.projections import _scaling as units
from wotlab.projections._result import Projection


@dataclass
class Active:
    """The images that have not converged. Everything in units of mass."""

    moves: Moves
    index: Tensor  # which image of the batch each is
    w: Tensor
    mass: Tensor
    cap: Tensor
    eps: Tensor
    beta: Tensor
    psi: Tensor
    z: Tensor
    dual: Tensor  # value of the dual an iteration ago
    best: Tensor  # beta before momentum
    age: Tensor  # of the momentum

    def keep(self, some: Tensor) -> "Active":
        names = ("index", "w", "mass", "cap", "eps", "beta", "psi", "z", "dual", "best", "age")
        return Active(self.moves.select(some)[0], **{n: getattr(self, n)[some] for n in names})

    def rows(self, slack: float) -> tuple[Tensor, Tensor]:
        """Block 1: the plan's shares (K, N), and the log of what the softmax divided by (N,)."""
        moves, reach = self.moves, self.moves.read(self.beta)
        reach = reach.masked_fill_(moves.outside, -torch.inf)
        last = []

        def spent(psi):
            score = reach - psi[moves.owner] * moves.prices
            top = score.amax(0)
            shares = score.sub_(top).exp_()
            total = shares.sum(0)
            shares /= total
            mean = (shares * moves.prices).sum(0)
            spread = (shares * moves.prices**2).sum(0) - mean**2
            last[:] = shares, total.log() + top
            return moves.total(mean * moves.mass), -moves.total(spread * moves.mass)

        self.psi = budget.price(spent, self.eps, self.psi, slack)
        return last[0], last[1]

    def columns(self, column: Tensor, lam: float, momentum: bool) -> None:
        """Block 2, and a step of momentum beyond it, given up where it no longer climbs.

        A sum that underflows gives z = 0 and the largest beta; the next iteration corrects it.
        """
        climb = self.z - column  # gradient of the dual in beta
        u = column.log() - self.beta
        free = wright_omega(u + lam * self.w + math.log(lam)) / lam
        z = torch.minimum(free, self.cap)
        best = torch.where(free > self.cap, self.cap.log() - u, lam * (self.w - z))
        move = best - self.best
        age = torch.where((climb * move).sum((1, 2, 3)) < 0, 1, self.age)
        self.age = (1 + (1 + 4 * age.square()).sqrt()) / 2
        beyond = units.column((age - 1) / self.age) * move
        self.best, self.beta = best, best + beyond if momentum else best
        self.z = (self.w - self.beta / lam).clamp_min(0).minimum(self.cap)

    def value(self, lse: Tensor, lam: float) -> Tensor:
        """The dual of the problem without its constant, at rows just solved: (B,)."""
        ends = lam / 2 * (self.w - self.z).square() + self.beta * self.z
        starts = (self.moves.mass.log() - lse) * self.moves.mass
        return ends.sum((1, 2, 3)) + self.moves.total(starts) - self.psi * self.eps


@torch.no_grad()
def alternate(
    x: Tensor,
    w: Tensor,
    eps: float | Tensor,
    ground_cost: GroundCost,
    reg: float,
    tol: float,
    rule: str,
    max_iter: int,
    bound: bool,
    warm: dict[str, Tensor] | None,
) -> Projection:
    """Both blocks in turn until `rule` holds; see `constrained_sinkhorn` for the arguments."""
    task = units.scaled(x, w, eps)
    checks.positive("reg", reg)
    lam = 1 / reg  # as the papers write it
    checks.positive("tol", tol)
    checks.count("max_iter", max_iter)
    beta, psi = _start(task.x, x, warm)
    cap = 1 / task.mass if bound else torch.full_like(task.mass, torch.inf)
    moves = Moves(task.x, ground_cost)
    guess = (task.w - beta / lam).clamp_min(0).minimum(cap)
    index, dual = torch.arange(len(x), device=x.device), torch.full_like(psi, torch.nan)
    at = Active(
        moves,
        index,
        task.w,
        task.mass,
        cap,
        task.eps,
        beta,
        psi,
        guess,
        dual,
        beta,
        torch.ones_like(psi),
    )

    # an image whose budget is 0 has nothing to look for: it stays x
    image, shares, phi = task.x.clone(), moves.still(), torch.zeros_like(beta)
    iterations, converged = torch.zeros_like(index), task.eps == 0
    at = at.keep(~converged)
    for turn in range(1, max_iter + 1):
        if len(at.index) == 0:
            break
        plan, lse = at.rows(0.1 * tol)
        column = at.moves.send(plan) / at.mass
        if rule == "plan":
            short = (column - at.z).abs().sum((1, 2, 3))
            done = (at.moves.cost(plan) <= at.eps * (1 + tol)) & (short <= tol)
        elif rule == "published":
            off = (at.z.sum((1, 2, 3)) - 1).abs()  # of the total: not where the mass lies
            done = (at.moves.cost(plan) <= at.eps * (1 + tol)) & (off <= tol)
        else:
            value = at.value(lse, lam)
            done = (value - at.dual).abs() <= tol * value.abs()
            at.dual = value
        left = done | (turn == max_iter)
        if bool(left.any()):
            rows = at.index[left]
            image[rows], beta[rows] = (at.z * at.mass)[left], at.beta[left]
            full = torch.where(at.z < at.cap, 0, lam * (at.w - at.z) - at.beta)
            phi[rows] = full[left].clamp_min(0)
            psi[rows], iterations[rows], converged[rows] = at.psi[left], turn, done[left]
            mine = torch.isin(moves.owner, rows)
            shares[:, mine] = plan[:, left[at.moves.owner]]
            at, column = at.keep(~left), column[~left]
        at.columns(column, lam, momentum=rule != "published")

    image = image.clamp(0, 1) if bound else image  # z <= r up to rounding
    duals = {"beta": beta, "phi": phi, "psi": psi}
    return Projection(
        image.to(x.dtype),
        TransportPlan(moves.plan(shares).mass.to(x.dtype), ground_cost),
        {name: value.to(x.dtype) for name, value in duals.items()},
        iterations,
        converged,
    )


def _start(scaled: Tensor, x: Tensor, warm: dict[str, Tensor] | None) -> tuple[Tensor, Tensor]:
    """beta and psi to start from: 0 and 1, or those of an earlier call."""
    beta, psi = torch.zeros_like(scaled), torch.ones_like(scaled[:, 0, 0, 0])
    if warm is None:
        return beta, psi
    for name, like in (("beta", beta), ("psi", psi)):
        value = warm.get(name)
        if not isinstance(value, Tensor) or value.shape != like.shape:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"warm must hold {name!r} of shape {tuple(like.shape)}, as in the duals of an "
                f"earlier call on images of this shape; got {found}"
            )
        if not bool(value.isfinite().all()):
            raise ValueError(f"warm[{name!r}] must be finite")
    return warm["beta"].to(scaled, copy=True), warm["psi"].to(scaled).clamp_min(0)
