"""The exact Euclidean projection onto a Wasserstein ball, by a quadratic program."""

import torch
from torch import Tensor

from wotlab._base import checks
from wotlab.ot import GroundCost
from wotlab.plans import Moves, TransportPlan
from wotlab.projections._problem import Projection, scaled


@torch.no_grad()
def exact_projection(
    x: Tensor, w: Tensor, eps: float | Tensor, ground_cost: GroundCost, *, bound: bool = True
) -> Projection:
    r"""Nearest image of a Wasserstein ball: the reference for the other projections.

    .. math:: \min_{z,\, \pi \ge 0}\ \tfrac12 \lVert z - w\rVert^2
        \quad\text{where}\quad \pi \mathbf{1} = x,\ \pi^\top \mathbf{1} = z,\
        \langle C, \pi\rangle \le \varepsilon \lVert x\rVert_1
        \text{ and, with } \mathtt{bound},\ z \le 1

    In pixels; one quadratic program an image, solved by Clarabel through cvxpy.
    This is the projection that Wong et al. (2019, eq. 3) and, with the bound, Hu et al. (2020,
    Definition 3.1) approximate.

    Parameters
    ----------
    x : Tensor (B, C, H, W)
        Clean images in [0, 1]. A black one comes back as it is.
    w : Tensor (B, C, H, W)
        Images to project: any finite values.
    eps : float or Tensor (B,)
        Budget in pixels of distance for an image of mass 1. 0 returns x itself.
    ground_cost : GroundCost
        Only moves inside its window are variables: at most 25 for each pixel that holds mass with
        the default window of 5 pixels.
    bound : bool
        Whether pixels stay at most 1.

    Returns
    -------
    Projection
        `plan` starts at x and costs at most eps, to rounding; `image` is its image, clamped to
        [0, 1] with `bound`, exact to the solver's 1e-8. `duals`: "psi" (B,), in units of mass.
        `iterations` are the solver's.

    Raises
    ------
    ImportError
        Where cvxpy or Clarabel is missing.
    ValueError
        For x outside [0, 1], w of another shape or not finite, eps negative or not
        finite.
    RuntimeError
        Where the solver fails.

    Notes
    -----
    On the CPU, image by image: a tenth of a second for 8x8, seconds for a digit. Not for attacks.

    Examples
    --------
    >>> import torch
    >>> from wotlab import GroundCost, projections
    >>> x = torch.tensor([[[[1.0, 0.0, 0.0]]]], dtype=torch.float64)
    >>> found = projections.exact_projection(x, x.flip(3), 0.5, GroundCost())
    >>> found.image.round(decimals=3) + 0
    tensor([[[[0.7500, 0.0000, 0.2500]]]], dtype=torch.float64)
    """
    task = scaled(x, w, eps)
    checks.flags(bound=bound)
    images, plans = [], []
    psi, iterations = torch.zeros_like(task.eps), torch.zeros(len(x), dtype=torch.long)
    for i in range(len(x)):
        one = task.x[i : i + 1]
        moves = Moves(one, ground_cost)
        shares = moves.identity()
        image = one.clone()
        if task.eps[i] > 0:
            goal = (task.w * task.mass)[i : i + 1]
            shares, psi[i], iterations[i] = _solve(moves, goal, float(task.eps[i]), bound)
            image = moves.push_forward(shares)
        images.append(image.clamp(0, 1) if bound else image)
        plans.append(moves.plan(shares).mass)
    image, plan = torch.cat(images), TransportPlan(torch.cat(plans), ground_cost)
    value = (image - task.w * task.mass).square().sum((1, 2, 3)) / 2
    duals, converged = {"psi": psi / task.mass.flatten()}, torch.ones_like(psi, dtype=torch.bool)
    return Projection(image, plan, value, duals, iterations.to(x.device), converged).to(x.dtype)


def _solve(moves: Moves, goal: Tensor, eps: float, bound: bool) -> tuple[Tensor, float, int]:
    """Shares (K, N) of one image's best plan, the multiplier of the budget, the iterations."""
    try:
        import clarabel  # noqa: F401
        import cvxpy as cp
        from scipy import sparse
    except ImportError as error:
        raise ImportError(
            "exact_projection solves a quadratic program with cvxpy and Clarabel: "
            "pip install cvxpy clarabel. Without them take constrained_sinkhorn"
        ) from error
    usable = ~moves.outside
    step, source = (part.cpu().numpy() for part in usable.nonzero(as_tuple=True))
    numbers = torch.arange(goal.numel(), device=goal.device, dtype=goal.dtype).reshape(goal.shape)
    target = moves.gather(numbers)[usable].long().cpu().numpy()
    flow = cp.Variable(len(step), nonneg=True)
    entries = range(len(step))
    ones = [1.0] * len(step)
    image = sparse.csr_matrix((ones, (target, entries)), (goal.numel(), len(step))) @ flow
    starts = sparse.csr_matrix((ones, (source, entries)), (len(moves.pixels), len(step))) @ flow
    costs = moves.costs[:, 0].cpu().numpy()[step]
    spend = costs @ flow <= eps * float(moves.pixels.sum())
    rules = [starts == moves.pixels.cpu().numpy(), spend] + [image <= 1] * bound
    distance = cp.sum_squares(image - goal.flatten().cpu().numpy()) / 2
    problem = cp.Problem(cp.Minimize(distance), rules)
    problem.solve(solver=cp.CLARABEL)
    if flow.value is None:
        raise RuntimeError(f"Clarabel ended with status {problem.status!r}")
    shares = torch.zeros(usable.shape, dtype=goal.dtype, device=goal.device)
    shares[usable] = torch.as_tensor(flow.value).to(goal).clamp_min(0)
    shares, _ = moves.within(shares / shares.sum(0), eps)  # off by the solver's tolerance
    return shares, float(spend.dual_value), problem.solver_stats.num_iters or 0
