r"""Euclidean projection of transport plans: dual projection (Wu et al., 2020)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from wotlab._base import checks
from wotlab.ot import GroundCost
from wotlab.plans import Moves, TransportPlan
from wotlab.projections import _budget as budget
from wotlab.projections import _scaling as units
from wotlab.projections._result import Projection


@torch.no_grad()
def dual_projection(
    x: Tensor,
    w: Tensor | TransportPlan,
    eps: float | Tensor,
    ground_cost: GroundCost,
    *,
    bound: bool = True,
    tol: float = 1e-6,
    max_iter: int = 2000,
) -> Projection:
    r"""Nearest plan to a stepped plan G (dual projection; Wu et al., 2020, sections 4 and 4.1).

    min 1/2 |Pi - G|^2 over Pi >= 0 with Pi 1 = x, <Pi, C> <= eps and, with `bound`, Pi^T 1 <= r,
    r = 1 / |x|_1: at the prices psi >= 0 of distance and phi >= 0 of full pixels each row of Pi is
    G_i - psi C - phi projected onto the simplex of size x_i. psi is solved by Newton's method
    inside a bracket, phi climbs by an accelerated gradient (FISTA, restarted).

    Parameters
    ----------
    x : Tensor (B, C, H, W)
        Clean images in [0, 1]. A black one comes back as it is.
    w : Tensor (B, C, H, W) or TransportPlan
        A stepped image: G is then the plan that stays at x after a step of w - x of the image,
        which is a step of (w - x)(j) for every source i of pixel j,
        G_i(d) = x_i [d = 0] + (w - x)(i + d). Or G itself, in units of pixels.
    eps : float or Tensor (B,)
        Budget in pixels of distance for an image of mass 1. 0 returns x itself.
    ground_cost : GroundCost
        That of the plan, where w is one.
    bound : bool
        Whether pixels stay at most 1. The paper's attack leaves it out and repairs at the end.
    tol : float > 0
        With `bound`: pixels exceed 1 by at most tol, and the dual is within tol of the optimum,
        relative to it. Without, the projection is exact to rounding.
    max_iter : int
        Steps of phi; the paper's repair makes 5000.

    Returns
    -------
    Projection
        `plan` starts at x and costs at most eps, to rounding, converged or not. `image` is the
        plan's image, clamped to at most 1 with `bound`. `duals`: "psi" (B,), "phi" (B, C, H, W),
        in units of mass.

    Raises
    ------
    ValueError
        For x outside [0, 1], w of another shape, ground cost or not finite, eps negative
        or not finite, tol not above 0.

    Notes
    -----
    Rows without mass hold no plan, whatever G says there. This projects plans, not images: its
    image is not the nearest one of the ball, and w inside the ball does not come back. For that
    take `exact_projection` or, larger, `constrained_sinkhorn`.
    """
    task = units.scaled(x, x if isinstance(w, TransportPlan) else w, eps)
    checks.positive("tol", tol)
    checks.count("max_iter", max_iter)
    moves = Moves(task.x, ground_cost)
    stepped = _stepped(moves, w, task)
    at = _Active(moves, torch.arange(len(x), device=x.device), task.mass, task.eps, stepped)
    shares, converged = moves.still(), task.eps == 0
    phi, psi = torch.zeros_like(task.x), torch.zeros_like(task.eps)
    iterations = torch.zeros_like(at.index)
    at = at.keep(~converged)
    # every entry of a plan ends in one pixel: the dual's curvature there is the number of sources
    sources = moves.send(torch.ones_like(shares) / moves.pixels).clamp_min(1)
    here, before, age = at.start(phi), at.start(phi), at.start(psi) + 1
    for turn in range(1, max_iter + 1):
        if len(at.index) == 0:
            break
        plan, price = at.solve(here, psi[at.index])
        over = at.moves.send(plan / at.moves.mass) - 1
        over = over if bound else torch.full_like(over, -1.0)  # room everywhere: phi stays 0
        scaled = over / at.mass
        gap = (here * scaled).sum((1, 2, 3)).abs()
        far = at.moves.total((plan - at.stepped).nan_to_num(posinf=0).square().sum(0)) / 2
        done = (over.amax((1, 2, 3)) <= tol) & (gap <= tol * far)
        left = done | (turn == max_iter)
        rows = at.index
        psi[rows], phi[rows], iterations[rows] = price, here, turn
        converged[rows] = done
        step = (here + scaled / sources[rows]).clamp_min(0)
        move = step - before
        age = torch.where((scaled * move).sum((1, 2, 3)) < 0, 1, age)
        older = (1 + (1 + 4 * age.square()).sqrt()) / 2
        here = (step + units.column((age - 1) / older) * move).clamp_min(0)
        before, age = step, older
        if bool(left.any()):
            mine = torch.isin(moves.owner, rows[left])
            shares[:, mine] = (plan / at.moves.mass)[:, left[at.moves.owner]]
            at, here, before, age = at.keep(~left), here[~left], before[~left], age[~left]

    shares = _inside(moves, shares, task.eps)
    image = moves.send(shares)
    image = image.clamp(max=1) if bound else image
    plan = TransportPlan(moves.plan(shares).mass.to(x.dtype), ground_cost)
    duals = {"psi": psi.to(x.dtype), "phi": phi.to(x.dtype)}
    return Projection(image.to(x.dtype), plan, duals, iterations, converged)


@dataclass
class _Active:
    """The images that have not converged."""

    moves: Moves
    index: Tensor  # which image of the batch each is
    mass: Tensor
    eps: Tensor
    stepped: Tensor  # G (K, N) in units of mass, -inf along moves out of the image

    def keep(self, some: Tensor) -> "_Active":
        moves, columns = self.moves.select(some)
        parts = (self.index[some], self.mass[some], self.eps[some])
        return _Active(moves, *parts, self.stepped[:, columns])

    def start(self, value: Tensor) -> Tensor:
        return value[self.index]

    def solve(self, phi: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
        """The plan (K, N) at the pixels' prices phi, and the price psi that makes it cost eps."""
        moves = self.moves
        score = self.stepped - moves.read(phi)
        plan = []

        def spent(psi):
            rows, active = simplex(score - psi[moves.owner] * moves.prices, moves.mass)
            plan[:] = [rows]
            number = active.sum(0)
            mean = (active * moves.prices).sum(0) / number
            spread = (active * moves.prices**2).sum(0) - number * mean**2
            return moves.total((rows * moves.prices).sum(0)), -moves.total(spread)

        psi = budget.price(spent, self.eps, psi, 1e-9)
        return plan[0], psi


def simplex(score: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest columns to those of `score` (K, N) that are >= 0 and sum to `size` (N,).

    Also which entries are positive. Held et al. (1974): sort, and subtract the one threshold that
    leaves the right sum. Entries of -inf stay out.
    """
    ordered = score.sort(0, descending=True).values
    rank = torch.arange(1, len(score) + 1, device=score.device, dtype=score.dtype)[:, None]
    threshold = (ordered.cumsum(0) - size) / rank
    number = (ordered > threshold).sum(0, keepdim=True)
    # the first entry is above its threshold, were it not for rounding
    level = threshold.gather(0, (number - 1).clamp_min(0))
    return (score - level).clamp_min(0), score > level


def _stepped(moves: Moves, w: Tensor | TransportPlan, task: units.Scaled) -> Tensor:
    """The stepped plan G on the moves, (K, N), in units of mass."""
    if isinstance(w, TransportPlan):
        if w.ground_cost != moves.ground_cost:
            raise ValueError(f"w must be a plan with the ground cost {moves.ground_cost}")
        checks.tensor("w.mass", w.mass, 5, "(B, C, K, H, W)")
        b, c, h, width = task.x.shape
        fit = (b, c, len(moves.prices), h, width)
        if w.mass.shape != fit:
            raise ValueError(f"w must be a plan of shape {fit}; got {tuple(w.mass.shape)}")
        mass = w.mass.detach().to(task.mass) / task.mass[:, :, None]
        stepped = mass.movedim(2, 0)[:, task.x > 0]
    else:
        stepped = moves.read(task.w - task.x / task.mass)
        stepped[moves.stay] += moves.mass
    return stepped.masked_fill(moves.outside, -torch.inf)


def _inside(moves: Moves, shares: Tensor, eps: Tensor) -> Tensor:
    """Rows that sum to 1 and a cost of at most eps, where rounding left either."""
    shares = shares / shares.sum(0)
    spent = moves.cost(shares)
    return moves.blend(shares, torch.where(spent > eps, eps / spent.clamp_min(1e-300), 1))
