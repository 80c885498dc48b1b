"""Exact optimal transport: POT's network simplex on the pixels that hold mass."""

import numpy as np
import ot as pot
import torch
from torch import Tensor

from wotlab import checks
from wotlab.ground import GroundCost
from wotlab.ot.problem import OTResult, Problem
from wotlab.ot.semidual import minimum

MAX_PIVOTS = 10_000_000


def exact(a: Tensor, b: Tensor, cost: GroundCost | Tensor) -> OTResult:
    r"""Solve min_P <C, P> over plans P with marginals a and b, to machine precision.

    Parameters
    ----------
    a, b : Tensor
        Images (B, C, H, W) in [0, 1] or histograms (B, n), (B, m); each is scaled to mass 1.
    cost : GroundCost or Tensor
        Ground cost of images (whole grid), or a matrix (n, m) or (B, n, m).

    Returns
    -------
    OTResult
        `entropic` equals `primal` and carries the gradient in `a`, `b` and a cost matrix: the
        potentials and the plan. They are unique only where the optimum is, so at a degenerate
        point this is a subgradient. `f` and `g` are feasible on the whole grid.

    Raises
    ------
    ValueError
        For bad histograms or images, or a cost of another shape.
    RuntimeError
        If the network simplex stops before the optimum.

    Notes
    -----
    Runs on the CPU, one pair after the other, in time and memory of about (pixels with
    mass)^2: a few milliseconds for a digit of 28x28. For large batches, or on a GPU, where a
    bias can be borne, use `sinkhorn`.
    """
    problem = Problem(a, b, cost, balanced=True)
    dense = problem.matrix().detach().cpu().numpy()
    left, right = (x.detach().flatten(1).cpu().numpy() for x in (problem.a, problem.b))
    solved = [
        _simplex(left[k], right[k], dense if dense.ndim == 2 else dense[k])
        for k in range(len(left))
    ]
    value = problem.a.new_tensor([s[0] for s in solved])
    g = torch.from_numpy(np.stack([s[1] for s in solved])).to(problem.b).reshape(problem.b.shape)
    axes = tuple(c.detach() for c in problem.axes)
    f = minimum(axes, g)
    g = minimum(tuple(c.mT for c in axes), f)
    linear = (problem.a * f).sum((1, 2)) + (problem.b * g).sum((1, 2))
    dual = linear.detach()

    def rows_plan() -> Tensor:
        out = torch.zeros(len(solved), *dense.shape[-2:], dtype=torch.float64)
        for k, (_, _, rows, columns, mass) in enumerate(solved):
            out[k, rows, columns] = mass
        return out.to(problem.a)

    if problem.axes[0].requires_grad:
        linear = linear + (rows_plan() * problem.axes[0]).sum((1, 2))
    zeros = torch.zeros_like(value)
    return OTResult(
        primal=problem.total(value),
        dual=problem.total(dual),
        entropic=problem.total(value + linear - linear.detach()),
        f=problem.like(f.detach(), 0),
        g=problem.like(g.detach(), 1),
        iterations=problem.worst(zeros).long(),
        converged=problem.worst(zeros) == 0,
        marginal_error=problem.worst(zeros).to(problem.given.dtype),
        _build_plan=lambda: problem.plan(rows_plan()),
    )


def wasserstein_distance(x: Tensor, y: Tensor, cost: GroundCost | None = None) -> Tensor:
    r"""Exact transport cost between images, min_P <C, P>: (B,).

    With images scaled to mass 1 (over all channels) this is W_p^p(x, y), in pixels^p; for
    p = 1, the default, W_1 in pixels. Differentiable in `x` and `y` (see `exact`).

    Parameters
    ----------
    x, y : Tensor
        Images (B, C, H, W) in [0, 1] of one shape, each with some mass.
    cost : GroundCost, optional
        |i - j|_2 by default. Its window is ignored: a distance has the whole grid to move on.

    Raises
    ------
    ValueError
        For images that are black, out of range, not finite, of different shapes, or that hold
        different shares of their mass in a channel.

    Notes
    -----
    The scaling hides a change of brightness: W(x, x / 30) = 0. `wotlab.certify` reports the
    change of mass beside the distance.
    """
    checks.images("x", x)
    checks.images("y", y)
    checks.same_shape("y", y, "x", x)
    return exact(x, y, cost or GroundCost()).entropic


def wasserstein_infinity(x: Tensor, y: Tensor, cost: GroundCost | None = None) -> Tensor:
    r"""Exact W_infinity(x, y) = min_P max {C(i, j) : P_ij > 0}: (B,).

    The longest way that any mass must go (in the units of `cost`, with its power p). Found by
    bisection over the costs that occur, each tested by an exact plan that pays 1 for every
    forbidden move.

    Parameters
    ----------
    x, y, cost
        As in `wasserstein_distance`.

    Raises
    ------
    ValueError
        As `wasserstein_distance`.

    Notes
    -----
    It sees mass of any size: a pixel of 1e-6 far away counts in full. About ten exact problems
    an image. No gradient.
    """
    checks.images("x", x)
    checks.images("y", y)
    checks.same_shape("y", y, "x", x)
    problem = Problem(x.detach(), y.detach(), cost or GroundCost(), balanced=True)
    dense = problem.matrix().cpu().numpy()
    levels = np.unique(dense)
    left, right = (v.flatten(1).cpu().numpy() for v in (problem.a, problem.b))
    longest = torch.zeros(len(left), dtype=problem.a.dtype)
    for k in range(len(left)):
        low, high = 0, len(levels) - 1
        while low < high:
            middle = (low + high) // 2
            forbidden = (dense > levels[middle]).astype(np.float64)
            if _simplex(left[k], right[k], forbidden)[0] < 1e-12:
                high = middle
            else:
                low = middle + 1
        longest[k] = float(levels[low])
    return problem.worst(longest.to(problem.a)).to(x.dtype)


def _simplex(a: np.ndarray, b: np.ndarray, cost: np.ndarray):
    """One exact problem: value, potential on b (infinitely low where b is empty), sparse plan."""
    i, j = a.nonzero()[0], b.nonzero()[0]
    part = np.ascontiguousarray(cost[np.ix_(i, j)])
    mass, log = pot.emd(a[i], b[j], part, numItermax=MAX_PIVOTS, log=True)
    if log["warning"] is not None:
        raise RuntimeError(f"the exact solver stopped before the optimum: {log['warning']}")
    g = np.full(len(b), -np.inf)
    g[j] = log["v"]
    rows, columns = mass.nonzero()
    return log["cost"], g, i[rows], j[columns], torch.from_numpy(mass[rows, columns])
