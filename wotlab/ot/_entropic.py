"""Entropic optimal transport: Sinkhorn's algorithm, balanced and unbalanced, and its debiasing.

All of it maximises one dual, block by block, with the potentials in nats (f / reg) and the
kernel in the log domain. Two things make it fast: separable kernels (`_kernels.py`) and
over-relaxation (Thibault et al., 2021), each problem's factor set by Young's formula from the rate
at which its error falls (Lehmann et al., 2022). Problems that are done leave the batch.
"""

import warnings
from functools import cache

import torch
from torch import Tensor

from wotlab._base import checks
from wotlab._base.batch import Batch
from wotlab._base.kernels import agrees
from wotlab.ot._ground_cost import GroundCost
from wotlab.ot._kernels import Kernel
from wotlab.ot._problem import OTResult, Problem
from wotlab.ot.marginals import KL, L2, Balanced, Marginal

CHECK = 10  # iterations between two looks at the error
SIDE = 64  # pixels a side, up to which one program of a GPU iterates on a pair by itself


def sinkhorn(
    a: Tensor,
    b: Tensor,
    cost: GroundCost | Tensor,
    reg: float,
    *,
    tol: float = 1e-6,
    max_iter: int = 10_000,
) -> OTResult:
    r"""The plan between a and b of least cost and entropic term (Cuturi, 2013).

    .. math:: \min_\pi\ \langle C, \pi\rangle + \mathtt{reg}\ \mathrm{KL}(\pi \mid a b^\top)
        \quad\text{where}\quad \pi \mathbf{1} = a,\ \pi^\top \mathbf{1} = b

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

    On a GPU with Triton, images up to 64 pixels a side with a separable cost (see `GroundCost`)
    take one launch, in which each pair stops by itself, in float64; all else is PyTorch's.

    Examples
    --------
    >>> from wotlab import GroundCost, data, ot
    >>> x = data.load("digits").tensors(slice(2))[0].double()
    >>> ot.sinkhorn(x, x.flip(0), GroundCost(window=None), reg=0.1).value.round(decimals=3)
    tensor([0.8610, 0.8610], dtype=torch.float64)
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
    r"""The plan of least cost where mass may be made and destroyed for a penalty.

    .. math:: \min_{\pi \ge 0}\ \langle C, \pi\rangle
        + \mathtt{reg}\ \mathrm{KL}(\pi \mid a b^\top)
        + D(\pi \mathbf{1} \mid a) + D(\pi^\top \mathbf{1} \mid b)

    D(m | a) is :math:`\tau\, \mathrm{KL}(m \mid a)` for `marginals="kl"` (Chizat et al., 2018),
    and :math:`\tfrac{\tau}{2} \lVert m - a\rVert^2` for "l2". Histograms are taken as they are, not
    scaled. As tau grows the plan tends to the balanced one (if the masses agree); as tau falls
    to 0 it tends to :math:`a_i b_j e^{-C_{ij} / \mathtt{reg}}`, which moves next to nothing for
    small reg. Generalised KL: :math:`\mathrm{KL}(p \mid q) = \sum p \log(p / q) - p + q`.

    Parameters
    ----------
    a, b, cost, reg, tol, max_iter
        As in `sinkhorn`; `tol` is relative to the mass of `b`.
    tau : float > 0
        Weight of the penalty: in the units of the cost for "kl", per unit of mass for "l2".
    marginals : "kl" or "l2"

    Returns
    -------
    OTResult
        `primal` is the cost of the plan and of its marginals, `value` adds the reg term.

    Raises
    ------
    ValueError
        As `sinkhorn`, and for tau <= 0 or infinite, or other marginals.

    Examples
    --------
    >>> import torch
    >>> from wotlab import ot
    >>> a, cost = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.0, 9], [9, 0]]).double()
    >>> ot.unbalanced_sinkhorn(a, a.flip(1), cost, 0.1, 1.0).plan.sum().round(decimals=2)
    tensor(0.0100, dtype=torch.float64)
    """
    checks.positive("tau", tau)
    kinds: dict[str, Marginal] = {"kl": KL(tau), "l2": L2(tau)}
    if marginals not in kinds:
        raise ValueError(f'marginals must be "kl" or "l2"; got {marginals!r}')
    return _solve(a, b, cost, reg, kinds[marginals], tol, max_iter)


def sinkhorn_divergence(
    a: Tensor,
    b: Tensor,
    cost: GroundCost | Tensor | tuple[Tensor, Tensor, Tensor],
    reg: float,
    *,
    tol: float = 1e-6,
    max_iter: int = 10_000,
) -> Tensor:
    r"""The entropic value without its bias: 0 where a = b, (B,).

    .. math:: S(a, b) = \mathrm{OT}(a, b) - \tfrac12 \mathrm{OT}(a, a) - \tfrac12 \mathrm{OT}(b, b)

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

    Examples
    --------
    >>> from wotlab import GroundCost, data, ot
    >>> x = data.load("digits").tensors(slice(2))[0].double()
    >>> ot.sinkhorn_divergence(x, x.flip(0), GroundCost(), reg=0.1).round(decimals=3)
    tensor([0.5400, 0.5400], dtype=torch.float64)
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
        _solve(x, x, c, reg, Balanced(), tol, max_iter, symmetric=True)
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


def _solve(
    a: Tensor,
    b: Tensor,
    cost: GroundCost | Tensor,
    reg: float,
    marginal: Marginal,
    tol: float,
    max_iter: int,
    symmetric: bool = False,
) -> OTResult:
    checks.positive("reg", reg)
    checks.positive("tol", tol)
    checks.count("max_iter", max_iter)
    problem = Problem(a, b, cost, balanced=isinstance(marginal, Balanced))
    kernel = Kernel(problem.axes, reg)
    with torch.no_grad():
        (log_a, log_b), a, b = problem.logs, problem.a.detach(), problem.b.detach()
        of_a, of_b = _box(a), _box(b)
        at = Batch(kernel=kernel.box(of_a[1:], of_b[1:]), log_a=log_a[of_a], log_b=log_b[of_b])
        at.a, at.b = a[of_a], b[of_b]
        if symmetric:
            end = _symmetric(at, tol, max_iter)
        elif _fits(at, marginal):
            from wotlab.ot import _fused

            end = _fused.alternate(at, tol, max_iter, CHECK)
        else:
            end = _alternate(at, marginal, tol, max_iter)
        # elsewhere a potential is what one update makes of it, since no mass there is in the way
        every = (slice(None), slice(None))
        t = -kernel.box(every, of_b[1:]).apply(log_b[of_b] + end["g"])
        f = marginal.solve(t, a, reg)
        t = -kernel.box(of_a[1:], every).apply(log_a[of_a] + end["f"], back=True)
        g = marginal.solve(t, b, reg)
        f[of_a], g[of_b] = end["f"], end["g"]
    return _result(kernel, problem, marginal, end | {"f": f, "g": g}, tol)


def _fits(at: Batch, marginal: Marginal) -> bool:
    """Whether one kernel does all iterations."""
    if not (at.a.is_cuda and isinstance(marginal, Balanced) and len(at.kernel.axes) == 2):
        return False
    return max(at.a.shape[1:] + at.b.shape[1:]) <= SIDE and fuses(at.a.device)


@cache
def fuses(device: torch.device) -> bool:
    """Whether the kernel runs on a device, and gives what PyTorch gives there."""
    x = torch.linspace(-0.5, 1.5, 24, dtype=torch.float64, device=device).clamp(0, 1)
    a = x.reshape(2, 3, 4) / _sum(x.reshape(2, 3, 4))[:, None, None]
    axes = tuple(GroundCost().axis(side, device, a.dtype) for side in a.shape[1:])
    some = [
        Batch(kernel=Kernel(axes, reg), a=a, b=b, log_a=a.log(), log_b=b.log())
        for reg, b in ((0.5, a.flip(0, 1)), (0.005, a.flip(2)))  # by products, and exactly
    ]

    def ours() -> tuple[Tensor, ...]:
        from wotlab.ot import _fused

        return tuple(v for at in some for v in _fused.alternate(at, 1e-9, 12, CHECK).values())

    plain = (_alternate(at, Balanced(), 1e-9, 12) for at in some)
    return agrees("Sinkhorn", ours, tuple(v for end in plain for v in end.values()), 1e-6, 1e-9)


def _box(mass: Tensor) -> tuple[slice, slice, slice]:
    """The smallest box of the grid that holds all mass: a digit fills 20 rows of its 28."""
    lit = (mass > 0).any(0)
    rows, columns = (lit.any(axis).nonzero()[:, 0] for axis in (1, 0))
    first, last = torch.stack([rows[[0, -1]], columns[[0, -1]]], 1).tolist()
    return slice(None), slice(first[0], last[0] + 1), slice(first[1], last[1] + 1)


def _alternate(at: Batch, marginal: Marginal, tol: float, max_iter: int) -> dict[str, Tensor]:
    """Alternate over-relaxed updates of the two potentials until every row's error is small.

    Potentials are in nats here; with them come each row's error and the iterations it took.
    """
    a, reg = at.a, at.kernel.reg
    at.index = torch.arange(len(a), device=a.device)
    error, at.omega = a.new_full((len(a),), torch.inf), a.new_ones(len(a), 1, 1)
    at.f, at.g, at.error = torch.zeros_like(a), torch.zeros_like(at.b), error
    end = {
        "f": at.f.clone(), "g": at.g.clone(), "error": error.clone(), "iterations": at.index * 0
    }  # fmt: skip
    for step in range(1, max_iter + 1):
        look = step % CHECK == 0 or step == max_iter
        t = -at.kernel.apply(at.log_b + at.g)
        new = marginal.solve(t, at.a, reg)
        f = new if look else torch.lerp(at.f, new, at.omega)
        if look:
            row = torch.where(at.a > 0, at.a * (f - t).exp(), 0)
        shift = marginal.shift(f, at.g, at.a, at.b, reg)
        at.f, at.g = f + shift, at.g - shift
        at.t = -at.kernel.apply(at.log_a + at.f, back=True)
        if look:
            # the plan's marginals against those that optimality asks for at (f, g)
            column = torch.where(at.b > 0, at.b * (at.g - at.t).exp(), 0)
            error = _sum((row - marginal.wanted(at.f, at.a, reg)).abs()) / _sum(at.a)
            error = error + _sum((column - marginal.wanted(at.g, at.b, reg)).abs()) / _sum(at.b)
            at.omega = _relaxation(at.omega, (error / at.error) ** (1 / CHECK))
            at.error = error
            done = (error <= tol) | (step == max_iter)
            at = at.leave(done, end, f=at.f, g=at.g, error=error, iterations=step)
            if not len(at.index):
                break
        at.g = torch.lerp(at.g, marginal.solve(at.t, at.b, reg), at.omega)
    return end


def _symmetric(at: Batch, tol: float, max_iter: int) -> dict[str, Tensor]:
    """From a to a with one potential: the mean of it and its update (Feydy et al., 2019).

    The alternating updates are slow where reg is small, for the plan is nearly the identity and
    f - g hardly changes. With f = g the error halves at each step, whatever reg is.
    """
    a, f = at.a, torch.zeros_like(at.a)
    for step in range(1, max_iter + 1):
        t = -at.kernel.apply(at.log_a + f)
        error = _sum((torch.where(a > 0, a * (f - t).exp(), 0) - a).abs())
        if step == max_iter or bool((error <= tol).all()):
            break
        f = (f + t) / 2
    iterations = torch.full_like(error, step, dtype=torch.long)
    return {"f": f, "g": f, "error": error, "iterations": iterations}


def _relaxation(omega: Tensor, rate: Tensor) -> Tensor:
    """Best over-relaxation, from the rate (per iteration) at which the error fell with `omega`.

    Young's relation (rate + omega - 1)^2 = rate omega^2 theta gives theta, the rate of the plain
    iteration, and theta the best factor, 2 / (1 + sqrt(1 - theta)). A rate above 1 says that the
    iteration is not yet near its solution: back to the plain one, which always converges. Beyond
    the best factor it tends to omega - 1, whatever theta is: there the factor falls a little, until
    the relation holds again.
    """
    w = omega.flatten()
    theta = ((rate + w - 1).square() / (rate * w.square())).clamp(max=1 - 1e-7)
    too_far = rate <= 0.99 * (w - 1)
    best = torch.where(too_far, 1 + 0.95 * (w - 1), 2 / (1 + (1 - theta).sqrt()))
    return torch.where(rate < 1, best.clamp(1, 1.98), 1).reshape_as(omega)


def _result(
    kernel: Kernel, problem: Problem, marginal: Marginal, end: dict[str, Tensor], tol: float
) -> OTResult:
    reg, f, g = kernel.reg, end["f"], end["g"]
    log_a, log_b = problem.logs
    with torch.no_grad():
        a, b = problem.a, problem.b
        # the plan is P_ij = a_i b_j exp(F_i + G_j - C_ij / reg); its marginals over a and over b
        over_a = _bounded(f + kernel.apply(log_b + g), a).exp()
        over_b = _bounded(g + kernel.apply(log_a + f, back=True), b).exp()
        row, column = a * over_a, b * over_b
        paid = _sum(a * (f + kernel.apply_cost(log_b + g)).where(a > 0, 0).exp())
        penalty = _sum(marginal.penalty(row, a)) + _sum(marginal.penalty(column, b))
        surplus = reg * (_sum(row) - _sum(a) * _sum(b))
        value = reg * (_sum(row * f) + _sum(column * g)) - surplus + penalty
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
    error = problem.worst(end["error"])
    return OTResult(
        value=problem.total(problem.optimum(value, slopes, plans)) + unmoved,
        primal=(problem.total(paid + penalty) + unmoved).detach(),
        dual=(problem.total(dual) + unmoved).detach(),
        iterations=problem.worst(end["iterations"]),
        converged=(error <= tol) & problem.worst(value).isfinite(),
        marginal_error=error.to(problem.given.dtype),
        _potential=lambda which: problem.like(reg * (f, g)[which], which),
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
