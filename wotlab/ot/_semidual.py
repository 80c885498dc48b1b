"""The semi-dual: transport with one potential, the other replaced by its (soft) c-transform."""

import torch
from torch import Tensor

from wotlab._base import checks
from wotlab.ot._ground_cost import GroundCost
from wotlab.ot._kernels import CHUNK, Kernel, reduced
from wotlab.ot._problem import Problem, unit_mass


def c_transform(g: Tensor, b: Tensor, cost: GroundCost | Tensor, reg: float = 0) -> Tensor:
    r"""The best partner of a potential g: the largest f with f_i + g_j <= C_ij.

    For reg = 0, over every pixel j of the grid, and for reg > 0 the soft minimum weighted by b,
    with b scaled to mass 1:

    .. math:: f_i = \min_j\, C_{ij} - g_j, \qquad
        f_i = -\mathtt{reg}\, \log \sum_j b_j\, e^{(g_j - C_{ij}) / \mathtt{reg}}

    Differentiable in `g`.

    Parameters
    ----------
    g, b : Tensor
        Potential and histogram of one shape: images (B, C, H, W), or (B, m).
    cost : GroundCost or Tensor
        For images a ground cost (whole grid); else (n, m) or (B, n, m).
    reg : float >= 0
        In the units of the cost.

    Returns
    -------
    Tensor
        In the shape of the images, or (B, n).

    Raises
    ------
    ValueError
        For bad histograms or costs, g of another shape, reg < 0.

    Examples
    --------
    >>> import torch
    >>> from wotlab import ot
    >>> g, b = torch.tensor([[0.0, -3.0]]).double(), torch.tensor([[0.5, 0.5]]).double()
    >>> ot.c_transform(g, b, torch.tensor([[0.0, 1], [1, 0]]).double())
    tensor([[0., 1.]], dtype=torch.float64)
    """
    checks.positive("reg", reg, zero=True)
    checks.tensor("g", g, b.ndim, "of b")
    a = b if isinstance(cost, GroundCost) else b.new_ones(len(b), cost.shape[-2])
    problem = Problem(a, b, cost, balanced=False)
    checks.same_shape("g", g, "b", b)
    rows = g.to(problem.b.dtype).reshape(problem.all_b.shape)[problem.rows]
    if reg == 0:
        f = minimum(problem.axes, rows)
    else:
        log_b = unit_mass(problem.b.detach()).log()
        f = -reg * Kernel(problem.axes, reg).apply(log_b + rows / reg)
    return problem.like(f, 0)


def semi_dual(g: Tensor, a: Tensor, b: Tensor, cost: GroundCost | Tensor, reg: float = 0) -> Tensor:
    r"""Value of the dual at a potential g and its best partner, (B,): no constraint is left.

    .. math:: \langle a, g^c\rangle + \langle b, g\rangle

    Here :math:`g^c` is the c-transform of g, by `c_transform`. Concave in g. Its maximum over g is
    the transport cost for reg = 0 (Kantorovich duality) and the entropic value of `sinkhorn` for
    reg > 0 (Genevay et al., 2016). Histograms are scaled to mass 1. Differentiable in `g`. Use it
    where g is learned; where a solved potential is wanted, `exact` and `sinkhorn` return one.

    Parameters
    ----------
    g : Tensor
        Potential, in the shape of `b`.
    a, b, cost, reg
        As in `sinkhorn`; reg = 0 is the unregularised problem.

    Raises
    ------
    ValueError
        For bad histograms or costs, g of another shape, reg < 0.

    Examples
    --------
    >>> import torch
    >>> from wotlab import ot
    >>> a, b = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.25, 0.75]]).double()
    >>> g, cost = torch.tensor([[0.0, 1.0]]).double(), torch.tensor([[0.0, 1], [1, 0]]).double()
    >>> ot.semi_dual(g, a, b, cost), ot.exact(a, b, cost).value  # this g is a best one
    (tensor([0.7500], dtype=torch.float64), tensor([0.7500], dtype=torch.float64))
    """
    Problem(a, b, cost, balanced=True)
    f = c_transform(g, b, cost, reg)
    return (unit_mass(a) * f).flatten(1).sum(1) + (unit_mass(b) * g).flatten(1).sum(1)


def transform(problem: Problem, g: Tensor, *, back: bool = False) -> Tensor:
    """min_j C_ij - g_j over b's pixels j (`back`: over a's), with no n x n matrix of a grid.

    g is a row's, -infinity where nothing is to be reached; so is what comes back.
    """
    cost = problem.cost
    if isinstance(cost, Tensor) or cost.separable:
        return minimum(tuple(c.detach().mT if back else c.detach() for c in problem.axes), g)
    h = g.detach().flatten(1)
    some = (h > -torch.inf).any(0).nonzero()[:, 0]
    ends, places = problem.places(some), torch.arange(h.shape[1], device=h.device)
    parts = [
        reduced(torch.amin, cost.between(problem.places(part), ends, h.dtype), -h[:, None, some])
        for part in places.split(max(1, CHUNK // len(some)))
    ]
    return torch.cat(parts, 2).reshape(g.shape)


def minimum(axes: tuple[Tensor, ...], g: Tensor) -> Tensor:
    """min_j C_ij - g_j, one dimension of the rows after the other where C is separable."""
    f = reduced(torch.amin, axes[-1], -g)
    return reduced(torch.amin, axes[0], f.mT).mT if len(axes) == 2 else f
