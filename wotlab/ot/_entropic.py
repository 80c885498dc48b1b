"""Entropic optimal transport: Sinkhorn's algorithm, balanced and unbalanced, and its debiasing.

All of it maximises one dual, block by block, with the potentials in nats (f / reg) and the
kernel in the log domain. Two things make it fast: separable kernels (`wotlab.ot.kernels`) and
over-relaxation (Thibault et al., 2021), with the factor of each problem set from the rate at
which its own error falls (successive over-relaxation with Young's formula, as Lehmann et al.,
2022, analyse for Sinkhorn). Problems that are done leave the batch.
"""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from wotlab._base import checks
from wotlab.ot._ground_cost import GroundCost
from wotlab.ot._kernels import Kernel
from wotlab.ot._marginals import KL, L2, Balanced
from wotlab.ot._problem import OTResult, Problem

CHECK = 10  # iterations between two looks at the error


def sinkhorn(
    a: Tensor,
    b: Tensor,
    cost: GroundCost | Tensor,
    reg: float,
    *,
    tol: float = 1e-6,
    max_iter: int = 10_000,
) -> OTResult:
    r"""Solve min_P <C, P> + reg KL(P | a b^T) over plans P with marginals a and b.

    Parameters
    ----------
    a, b : Tensor
        Images (B, C, H, W) in [0, 1] or histograms (B, n), (B, m); each is scaled to mass 1.
    cost : GroundCost or Tensor
        Ground cost of images (whole grid), or a matrix (n, m) or (B, n, m).
    reg : float > 0
        Entropic weight, in the units of the cost (pixels, for images with p = 1). The bias of
        the value is of the order of reg; the work grows as reg falls.
    tol : float
        Stop at this l1 error of the marginals (of mass 1).
    max_iter : int
        Stop here in any case; `converged` says which problems are done.

    Returns
    -------
    OTResult
        On the device and in the dtype of `a`; computed in float64 where the device has it.

    Raises
    ------
    ValueError
        For bad histograms or images, a cost of another shape, reg, tol <= 0 or max_iter < 1.

    Notes
    -----
    For one exact number use `exact`; as a loss between images that may coincide use
    `sinkhorn_divergence`, since this value is not smallest at a = b.
    """
    return _solve(a, b, cost, reg, Balanced(), tol, max_iter)


def unbalanced_sinkhorn(
    a: Tensor,
    b: Tensor,
    cost: GroundCost | Tensor,
    reg: float,
    tau: float,
    *,
    marginals: str = "kl",
    tol: float = 1e-6,
    max_iter: int = 10_000,
) -> OTResult:
    r"""Solve min_P <C, P> + reg KL(P | a b^T) + D(P 1 | a) + D(P^T 1 | b), P >= 0.

    Mass may be made and destroyed at a price: D(m | a) = tau KL(m | a) for `marginals="kl"`
    (Chizat et al., 2018), tau/2 |m - a|^2 for "l2". Histograms are taken as they are, not
    scaled. As tau grows the plan tends to the balanced one (if the masses agree); as tau falls
    to 0 it tends to a_i b_j exp(-C_ij / reg), which moves next to nothing for small reg.
    Generalised KL: KL(p | q) = sum p log(p / q) - p + q.

    Parameters
    ----------
    a, b, cost, reg, tol, max_iter
        As in `sinkhorn`; `tol` is relative to the mass of `b`.
    tau : float > 0
        Price of changing mass: in the units of the cost for "kl", per unit of mass for "l2".
    marginals : "kl" or "l2"

    Returns
    -------
    OTResult
        `primal` is the cost of the plan and of its marginals, `value` adds the reg term.

    Raises
    ------
    ValueError
        As `sinkhorn`, and for tau <= 0 or infinite, or other marginals.
    """
    checks.positive("tau", tau)
    kinds = {"kl": KL, "l2": L2}
    if marginals not in kinds:
        raise ValueError(f'marginals must be "kl" or "l2"; got {marginals!r}')
    return _solve(a, b, cost, reg, kinds[marginals](tau), tol, max_iter)


def sinkhorn_divergence(
    a: Tensor,
    b: Tensor,
    cost: GroundCost | Tensor | tuple[Tensor, Tensor, Tensor],
    reg: float,
    *,
    tol: float = 1e-6,
    max_iter: int = 10_000,
) -> Tensor:
    r"""The debiased value S(a, b) = OT(a, b) - OT(a, a) / 2 - OT(b, b) / 2, (B,).

    OT is the `value` of `sinkhorn`. S is 0 at a = b, positive elsewhere for the costs
    |i - j| and |i - j|^2 (Feydy et al., 2019), and differentiable in `a`, `b` and the costs.

    Parameters
    ----------
    a, b, reg, tol, max_iter
        As in `sinkhorn`.
    cost : GroundCost, Tensor or three Tensors
        For images a ground cost. For histograms a symmetric matrix on one common support, or
        the three matrices (a to b, a to a, b to b).

    Raises
    ------
    ValueError
        As `sinkhorn`, and for a single matrix that is not square.

    Warns
    -----
    UserWarning
        If a problem has not converged; `sinkhorn` says which, and how far it is.
    """
    costs = cost if isinstance(cost, tuple) else (cost, cost, cost)
    if len(costs) != 3:
        raise ValueError(f"cost must be one cost or three (ab, aa, bb); got {len(costs)}")
    if isinstance(cost, Tensor) and cost.ndim >= 2 and cost.shape[-1] != cost.shape[-2]:
        raise ValueError(
            f"cost must be square for one common support, or three matrices (ab, aa, bb); "
            f"got {tuple(cost.shape)}"
        )
    ab = sinkhorn(a, b, costs[0], reg, tol=tol, max_iter=max_iter)
    aa, bb = (
        _solve(x, x, c, reg, Balanced(), tol, max_iter, _iterate_symmetric)
        for x, c in zip((a, b), costs[1:], strict=True)
    )
    done = ab.converged & aa.converged & bb.converged
    if not bool(done.all()):
        worst = max(float(each.marginal_error.max()) for each in (ab, aa, bb))
        warnings.warn(
            f"sinkhorn_divergence: {int((~done).sum())} of {len(done)} problems did not converge "
            f"in {max_iter} iterations (marginals off by up to {worst:.1e}, tol is {tol:.1e}), so "
            f"that their values are not final; take a larger max_iter or reg",
            stacklevel=2,
        )
    return ab.value - (aa.value + bb.value) / 2


@dataclass
class _Potentials:
    """Potentials in nats of every row, and how each row's iteration ended."""

    f: Tensor
    g: Tensor
    error: Tensor
    iterations: Tensor


def _solve(a, b, cost, reg, marginal, tol, max_iter, iterate=None) -> OTResult:
    checks.positive("reg", reg)
    checks.positive("tol", tol)
    checks.count("max_iter", max_iter)
    problem = Problem(a, b, cost, balanced=isinstance(marginal, Balanced))
    kernel = Kernel(problem.axes, reg)
    with torch.no_grad():
        end = (iterate or _iterate)(kernel, problem, marginal, tol, max_iter)
    return _result(kernel, problem, marginal, end, tol)


def _iterate(kernel: Kernel, problem: Problem, marginal, tol, max_iter) -> _Potentials:
    """Alternate over-relaxed updates of the two potentials until every row's error is small."""
    a, b = problem.a.detach(), problem.b.detach()
    (log_a, log_b), reg = problem.log(), kernel.reg
    f, g = torch.zeros_like(a), torch.zeros_like(b)
    rows = torch.arange(len(a), device=a.device)
    end = _Potentials(f.clone(), g.clone(), a.new_full((len(a),), torch.inf), rows * 0)
    omega, before = a.new_ones(len(a), 1, 1), None
    for step in range(1, max_iter + 1):
        look = step % CHECK == 0 or step == max_iter
        t = -kernel.apply(log_b + g)
        new = marginal.solve(t, a, reg)
        f = new if look else torch.lerp(f, new, omega)
        if look:
            row = torch.where(a > 0, a * (f - t).exp(), 0)
        shift = marginal.shift(f, g, a, b, reg)
        f, g = f + shift, g - shift
        t = -kernel.apply_transposed(log_a + f)
        if look:
            # the plan's marginals against those that optimality asks for at (f, g)
            column = torch.where(b > 0, b * (g - t).exp(), 0)
            error = _sum((row - marginal.wanted(f, a, reg)).abs()) / _sum(a)
            error = error + _sum((column - marginal.wanted(g, b, reg)).abs()) / _sum(b)
            end.f[rows], end.g[rows], end.error[rows], end.iterations[rows] = f, g, error, step
            going = error.isnan() | (error > tol)
            if not going.any():
                break
            if before is not None:
                omega = _relaxation(omega, (error / before) ** (1 / CHECK))
            before = error
            if not going.all():
                rows, kernel = rows[going], kernel.select(going)
                f, g, t, omega, before = (v[going] for v in (f, g, t, omega, before))
                a, b, log_a, log_b = (v[going] for v in (a, b, log_a, log_b))
        g = torch.lerp(g, marginal.solve(t, b, reg), omega)
    return end


def _iterate_symmetric(kernel: Kernel, problem: Problem, marginal, tol, max_iter) -> _Potentials:
    """From a to a with one potential: the mean of it and its update (Feydy et al., 2019).

    The alternating updates are slow where reg is small, for the plan is nearly the identity and
    f - g hardly changes. With f = g the error halves at each step, whatever reg is.
    """
    a, (log_a, _) = problem.a.detach(), problem.log()
    f = torch.zeros_like(a)
    for step in range(1, max_iter + 1):
        t = marginal.solve(-kernel.apply(log_a + f), a, kernel.reg)
        error = _sum((torch.where(a > 0, a * (f - t).exp(), 0) - a).abs())
        if step == max_iter or bool((error <= tol).all()):
            break
        f = (f + t) / 2
    return _Potentials(f, f.clone(), error, torch.full_like(error, step, dtype=torch.long))


def _relaxation(omega: Tensor, rate: Tensor) -> Tensor:
    """Best over-relaxation, from the rate (per iteration) at which the error fell with `omega`.

    Young's relation (rate + omega - 1)^2 = rate omega^2 theta gives theta, the rate of the plain
    iteration, and theta the best factor, 2 / (1 + sqrt(1 - theta)). A rate above 1 says that the
    iteration is not yet near its solution: back to the plain one, which always converges.
    """
    w = omega.flatten()
    theta = ((rate + w - 1).square() / (rate * w.square())).clamp(max=1 - 1e-7)
    best = torch.where(rate > w - 1, 2 / (1 + (1 - theta).sqrt()), w)
    return torch.where(rate < 1, best.clamp(1, 1.98), 1).reshape_as(omega)


def _result(kernel: Kernel, problem: Problem, marginal, end: _Potentials, tol) -> OTResult:
    reg, f, g = kernel.reg, end.f, end.g
    log_a, log_b = problem.log()
    with torch.no_grad():
        a, b = problem.a, problem.b
        # the plan is P_ij = a_i b_j exp(F_i + G_j - C_ij / reg); its marginals over a and over b
        over_a = _bounded(f + kernel.apply(log_b + g), a).exp()
        over_b = _bounded(g + kernel.apply_transposed(log_a + f), b).exp()
        row, column = a * over_a, b * over_b
        paid = _sum(a * (f + kernel.apply_cost(log_b + g)).where(a > 0, 0).exp())
        price = _sum(marginal.price(row, a)) + _sum(marginal.price(column, b))
        surplus = reg * (_sum(row) - _sum(a) * _sum(b))
        value = reg * (_sum(row * f) + _sum(column * g)) - surplus + price
        dual = _sum(marginal.dual(reg * f, a)) + _sum(marginal.dual(reg * g, b)) - surplus

    def slopes() -> tuple[Tensor, Tensor]:
        return (
            marginal.slope(reg * f, a) - reg * (over_a - _sum(b)[:, None, None]),
            marginal.slope(reg * g, b) - reg * (over_b - _sum(a)[:, None, None]),
        )

    def plans() -> Tensor:
        left, right = (log_a + f).flatten(1), (log_b + g).flatten(1)
        return (left[:, :, None] + kernel.dense() + right[:, None, :]).exp()

    unmoved = problem.unmoved(marginal)
    error = problem.worst(end.error)
    return OTResult(
        value=problem.total(problem.optimum(value, slopes, plans)) + unmoved,
        primal=(problem.total(paid + price) + unmoved).detach(),
        dual=(problem.total(dual) + unmoved).detach(),
        iterations=problem.worst(end.iterations),
        converged=(error <= tol) & problem.worst(value).isfinite(),
        marginal_error=error.to(problem.given.dtype),
        _build_potentials=lambda: (problem.like(reg * f, 0), problem.like(reg * g, 1)),
        _build_plan=lambda: problem.plan(plans()),
    )


def _bounded(exponent: Tensor, mass: Tensor) -> Tensor:
    """The exponent of a marginal over its histogram, kept finite on pixels that hold no mass.

    There it only says how fast the value would fall if mass appeared; e^60 is as good as any
    larger number, and 0 times it is 0.
    """
    return torch.where(mass > 0, exponent, exponent.clamp_max(60))


def _sum(values: Tensor) -> Tensor:
    return values.sum((1, 2))
