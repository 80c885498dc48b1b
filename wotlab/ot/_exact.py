"""Exact optimal transport: POT's network simplex on the pixels that hold mass."""

import warnings
from collections.abc import Iterator
from functools import cache
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from wotlab._base import checks
from wotlab.ot._ground_cost import GroundCost
from wotlab.ot._problem import OTResult, Problem
from wotlab.ot._semidual import transform

MAX_PIVOTS = 10_000_000
GAP = 1e-6  # relative, between the plan's cost and the dual value: what counts as solved


def exact(a: Tensor, b: Tensor, cost: GroundCost | Tensor) -> OTResult:
    r"""The plan of least cost between a and b, to machine precision.

    .. math:: \min_\pi\ \langle C, \pi\rangle
        \quad\text{where}\quad \pi \mathbf{1} = a,\ \pi^\top \mathbf{1} = b,\ \pi \ge 0

    Parameters
    ----------
    a, b : Tensor
        Images (B, C, H, W) in [0, 1] or histograms (B, n), (B, m); each is scaled to mass 1.
    cost : GroundCost or Tensor
        Ground cost of images (whole grid), or a matrix (n, m) or (B, n, m).

    Returns
    -------
    OTResult
        `value` equals `primal` and carries the gradient in `a`, `b` and a cost matrix: the
        potentials and the plan. They are unique only where the optimum is, so at a degenerate
        point this is a subgradient. `f` and `g` are feasible on the whole grid: built when they
        or a gradient are asked for, in time of about (pixels)^2 for a cost that is not separable.

    Raises
    ------
    ValueError
        For bad histograms or images, or a cost of another shape.
    RuntimeError
        If the network simplex stops before the optimum.

    Warns
    -----
    UserWarning
        If a value is above its dual bound by more than a millionth: costs span too much.

    Notes
    -----
    Runs on the CPU, one pair after the other, in time and memory of about (pixels with
    mass)^2, however large the grid: a few milliseconds for a digit of 28x28. For large batches,
    or on a GPU, where a bias can be borne, use `sinkhorn`.

    Examples
    --------
    >>> import torch
    >>> from wotlab import GroundCost, ot
    >>> x = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    >>> x[0, 0, 0, 0] = 1.0
    >>> ot.exact(x, x.flip(2, 3), GroundCost()).value  # from corner to corner
    tensor([4.2426], dtype=torch.float64)
    """
    problem = Problem(a, b, cost, balanced=True)
    solved = [_simplex(*row) for row in _lit(problem)]
    value, dual, open_ = (
        problem.a.new_tensor([getattr(row, name) for row in solved])
        for name in ("value", "dual", "open")
    )
    if bool(open_.any()):
        warnings.warn(
            f"exact: {int(open_.sum())} of {len(solved)} problems have costs that span more than "
            f"float64 holds; their values are upper bounds, as `converged` and `dual` say. Take a "
            f"smaller p",
            stacklevel=2,
        )

    def potentials() -> tuple[Tensor, Tensor]:
        g = torch.full_like(problem.b, -torch.inf).flatten(1)
        for k, row in enumerate(solved):
            g[k, torch.from_numpy(row.ends)] = torch.from_numpy(row.g).to(g)
        f = transform(problem, g.reshape(problem.b.shape))
        return f, transform(problem, f, back=True)

    def plans() -> Tensor:
        size = [len(solved), *(v[0].numel() for v in (problem.a, problem.b))]
        out = torch.zeros(size, dtype=torch.float64)
        for k, row in enumerate(solved):
            out[k, row.rows, row.columns] = torch.from_numpy(row.mass)
        return out.to(problem.a)

    zeros, shared = torch.zeros_like(value), cache(potentials)
    return OTResult(
        value=problem.total(problem.optimum(value, shared, plans)),
        primal=problem.total(value),
        dual=problem.total(dual),
        iterations=problem.worst(zeros).long(),
        converged=problem.worst(open_) == 0,
        marginal_error=problem.worst(zeros).to(problem.given.dtype),
        _potential=lambda which: problem.like(shared()[which], which),
        _build_plan=lambda: problem.plan(plans()),
    )


def wasserstein_distance(x: Tensor, y: Tensor, cost: GroundCost | None = None) -> Tensor:
    r"""Exact transport cost between images: (B,).

    .. math:: W_p^p(x, y) = \min_{\pi \in \Pi(x, y)} \langle C, \pi\rangle

    for images scaled to mass 1 (over all channels), in pixels^p; for p = 1, the default,
    :math:`W_1` in pixels. Differentiable in `x` and `y` (see `exact`).

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

    Examples
    --------
    >>> from wotlab import data, wasserstein_distance
    >>> x = data.load("digits").tensors(slice(3))[0].double()
    >>> wasserstein_distance(x, x.roll(1, 0)).round(decimals=3)  # in pixels
    tensor([1.2820, 0.6030, 1.0400], dtype=torch.float64)
    """
    checks.image_pair(x=x, y=y)
    return exact(x, y, cost or GroundCost()).value


def wasserstein_infinity(x: Tensor, y: Tensor, cost: GroundCost | None = None) -> Tensor:
    r"""The longest distance that any mass must travel, exactly: (B,).

    .. math:: W_\infty(x, y) = \min_{\pi \in \Pi(x, y)} \max\,\{C_{ij} : \pi_{ij} > 0\}

    In the units of `cost`, with its power p. Found by
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

    Examples
    --------
    >>> import torch
    >>> from wotlab import ot, wasserstein_distance
    >>> x = torch.tensor([[[[1.0, 0.0, 0.0, 0.0]]]], dtype=torch.float64)
    >>> z = torch.tensor([[[[0.9, 0.0, 0.0, 0.1]]]], dtype=torch.float64)
    >>> ot.wasserstein_infinity(x, z), wasserstein_distance(x, z).round(decimals=6)
    (tensor([3.], dtype=torch.float64), tensor([0.3000], dtype=torch.float64))
    """
    checks.image_pair(x=x, y=y)
    problem = Problem(x.detach(), y.detach(), cost or GroundCost(), balanced=True)
    longest = []
    for a, b, costs, _, _ in _lit(problem):
        levels = np.unique(costs)
        low, high = 0, len(levels) - 1
        while low < high:
            middle = (low + high) // 2
            if _emd(a, b, (costs > levels[middle]).astype(np.float64))[1]["cost"] < 1e-12:
                high = middle
            else:
                low = middle + 1
        longest.append(float(levels[low]))
    return problem.worst(problem.a.new_tensor(longest)).to(x.dtype)


def _lit(problem: Problem) -> Iterator[tuple[np.ndarray, ...]]:
    """Of each row the mass of the pixels that hold some, the costs between them, and which."""
    left, right = (v.detach().flatten(1).cpu() for v in (problem.a, problem.b))
    for k, (a, b) in enumerate(zip(left, right, strict=True)):
        i, j = a.nonzero()[:, 0], b.nonzero()[:, 0]
        if isinstance(problem.cost, GroundCost):
            costs = problem.cost.between(problem.places(i), problem.places(j))
        else:
            matrix = problem.axes[0].detach().cpu()
            costs = (matrix if matrix.ndim == 2 else matrix[k])[i][:, j]
        yield a[i].numpy(), b[j].numpy(), costs.contiguous().numpy(), i.numpy(), j.numpy()


class _Solved(NamedTuple):
    """One exact problem: values, potential on b's pixels that hold mass, the plan's entries."""

    value: float
    dual: float
    open: bool
    g: np.ndarray
    ends: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    mass: np.ndarray


def _simplex(
    a: np.ndarray, b: np.ndarray, costs: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> _Solved:
    """The best plan of one problem, and the best proof that there is no better one.

    Costs such as |i - j|^20 span more than the solver's precision: the dual value then lies below
    that of the plan. Costs are then cut down to a thousand times the largest that the plan pays:
    nothing moves there, and the smaller ones are seen.
    """
    cap, nothing = float(np.abs(costs).max()) or 1.0, np.empty(0)
    best, proof = (np.inf, nothing), (-np.inf, nothing)
    for _ in range(5):
        mass, log = _emd(a, b, np.minimum(costs, cap) / cap)
        f = (costs - cap * log["v"]).min(1)  # feasible for the costs as they are
        g = (costs - f[:, None]).min(0)
        best = min(best, ((mass * costs).sum(), mass), key=itemgetter(0))
        proof = max(proof, (a @ f + b @ g, g), key=itemgetter(0))
        i, j = best[1].nonzero()
        moved, paid = best[1][i, j], np.abs(costs[i, j])
        gap = best[0] - max(proof[0], costs.min())  # every plan moves a mass of 1
        # masses of sum 1 are right to some 1e-16: what moves such crumbs proves nothing
        rounding = 1e-12 * paid[moved > 1e-12].max() + (moved * paid)[moved < 1e-15].sum()
        still_open = gap > GAP * abs(best[0]) + rounding
        if not still_open or not 0 < 1e3 * paid.max() < cap:
            break
        cap = 1e3 * float(paid.max())
    return _Solved(best[0], proof[0], still_open, proof[1], ends, starts[i], ends[j], moved)


def _emd(a: np.ndarray, b: np.ndarray, costs: np.ndarray) -> tuple[np.ndarray, dict]:
    import ot as pot

    mass, log = pot.emd(a, b, costs, numItermax=MAX_PIVOTS, log=True)
    if log["warning"] is not None:
        raise RuntimeError(f"the exact solver stopped before the optimum: {log['warning']}")
    return mass, log
