r"""Euclidean projection of transport plans: dual projection (Wu et al., 2020)."""

import torch
from torch import Tensor

from wotlab._base import checks
from wotlab._base.batch import Batch
from wotlab.ot import GroundCost
from wotlab.plans import Moves, TransportPlan
from wotlab.projections._ascent import Momentum, multiplier
from wotlab.projections._problem import Projection, Scaled, scaled


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

    .. math:: \min_{\pi \ge 0}\ \tfrac12 \lVert \pi - G\rVert^2
        \quad\text{where}\quad \pi \mathbf{1} = x,\ \langle C, \pi\rangle \le \varepsilon
        \text{ and, with } \mathtt{bound},\ \pi^\top \mathbf{1} \le r = 1 / \lVert x\rVert_1

    At the multipliers psi of distance and phi of full pixels, both at least 0, each row of the plan
    is :math:`G_i - \psi C_i - \phi` projected onto the simplex of size x_i. psi is solved by
    Newton's method inside a bracket, phi climbs by an accelerated gradient (FISTA, restarted).

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

    Examples
    --------
    >>> from wotlab import GroundCost, data, projections
    >>> x, _ = data.load("digits").tensors(slice(1))
    >>> x = x.double()
    >>> found = projections.dual_projection(x, x.flip(3), 0.1, GroundCost())
    >>> round(float(found.plan.cost()), 4), float(found.image.max()) <= 1
    (0.1, True)
    """
    task = scaled(x, x if isinstance(w, TransportPlan) else w, eps)
    checks.flags(bound=bound)
    checks.positive("tol", tol)
    checks.count("max_iter", max_iter)
    moves = Moves(task.x, ground_cost)
    goal = _stepped(moves, w, task)
    index, psi = torch.arange(len(x), device=x.device), torch.zeros_like(task.eps)
    phi, free = torch.zeros_like(task.x), task.eps > 0
    found = {"phi": phi, "psi": psi, "iterations": torch.zeros_like(index), "converged": ~free}
    # every entry of a plan ends in one pixel: the dual's curvature there is the number of sources
    sources = moves.push_forward(torch.ones_like(goal) / moves.pixels).clamp_min(1)
    momentum = Momentum(last=phi, age=torch.ones_like(psi))
    at = Batch(index=index, **vars(task), moves=moves, sources=sources)
    at.phi, at.psi, at.momentum = phi, psi, momentum
    at, stepped = at.select(free), goal[:, free[moves.image_index]]
    for turn in range(1, max_iter + 1):
        if len(at.index) == 0:
            break
        at.psi, rows = _solve(at.moves, stepped - at.moves.gather(at.phi), at.eps, at.psi)
        over = at.moves.push_forward(rows / at.moves.mass) - 1
        over = over if bound else torch.full_like(over, -1.0)  # room everywhere: phi stays 0
        at.climb = over / at.mass
        gap = (at.phi * at.climb).sum((1, 2, 3)).abs()
        far = at.moves.total((rows - stepped).nan_to_num(posinf=0).square().sum(0)) / 2
        done = (over.amax((1, 2, 3)) <= tol) & (gap <= tol * far)
        left = done | (turn == max_iter)
        if bool(left.any()):
            stepped = stepped[:, ~left[at.moves.image_index]]
        at = at.leave(left, found, phi=at.phi, psi=at.psi, iterations=turn, converged=done)
        step = (at.phi + at.climb / at.sources).clamp_min(0)
        at.phi = at.momentum.beyond(step, at.climb).clamp_min(0)

    score = goal - moves.gather(phi) - psi[moves.image_index] * moves.costs
    rows, _ = simplex(score, moves.mass)
    rows = torch.where(free[moves.image_index], rows, moves.identity() * moves.mass)
    value = moves.total((rows - goal).nan_to_num(posinf=0).square().sum(0)) / 2
    # rows that sum to 1 and a cost of at most eps, where rounding left either
    shares, _ = moves.within(rows / rows.sum(0), task.eps)
    image = moves.push_forward(shares)
    image = image.clamp(max=1) if bound else image
    ends = found["iterations"], found["converged"]
    return Projection(image, moves.plan(shares), value, {"psi": psi, "phi": phi}, *ends).to(x.dtype)


def _solve(moves: Moves, score: Tensor, eps: Tensor, psi: Tensor) -> tuple[Tensor, ...]:
    """The multiplier psi at which the plan (K, N) nearest to `score` costs eps, and that plan."""

    def spent(psi: Tensor) -> tuple[Tensor, ...]:
        rows, active = simplex(score - psi[moves.image_index] * moves.costs, moves.mass)
        number = active.sum(0)
        mean = (active * moves.costs).sum(0) / number
        spread = (active * moves.costs**2).sum(0) - number * mean**2
        return moves.total((rows * moves.costs).sum(0)), -moves.total(spread), rows

    return multiplier(spent, eps, psi, 1e-9)


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


def _stepped(moves: Moves, w: Tensor | TransportPlan, task: Scaled) -> Tensor:
    """The stepped plan G on the moves, (K, N), in units of mass."""
    if isinstance(w, TransportPlan):
        if w.ground_cost != moves.ground_cost:
            raise ValueError(f"w must be a plan with the ground cost {moves.ground_cost}")
        checks.tensor("w.mass", w.mass, 5, "(B, C, K, H, W)")
        b, c, h, width = task.x.shape
        fit = (b, c, len(moves.costs), h, width)
        if w.mass.shape != fit:
            raise ValueError(f"w must be a plan of shape {fit}; got {tuple(w.mass.shape)}")
        mass = w.mass.detach().to(task.mass) / task.mass[:, :, None]
        stepped = mass.movedim(2, 0)[:, task.x > 0]
    else:
        stepped = moves.gather(task.w - task.x / task.mass)
        stepped[moves.stay] += moves.mass
    return stepped.masked_fill(moves.outside, -torch.inf)
