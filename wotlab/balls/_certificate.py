"""Certificates: what an image costs, and whether it lies in a ball."""

from dataclasses import dataclass, replace

import torch
from joblib import Parallel, delayed
from torch import Tensor
from tqdm.auto import tqdm

from wotlab._base import checks
from wotlab._base.precision import wide
from wotlab.ot import GroundCost, exact
from wotlab.plans import TransportPlan

PART = 50  # images whose exact distances are solved at a time
TOLERANCE = 1e-4  # relative on the budget, absolute on mass and range: float32 images, rounded
ROUNDING = 1e-5  # share of an image's mass by which a plan's source may differ from the image


@dataclass(frozen=True)
class Certificate:
    """What an image spent of its budget, one entry an image. All tensors (B,).

    Attributes
    ----------
    cost : Tensor
        Transport cost between x and x_adv, each scaled to mass 1: exact (by network simplex on
        the whole grid) or, where a plan was given and `exact=False`, the plan's own price, an
        upper bound. Infinite where no plan leads from x to x_adv: a channel has gone black, or
        one that was black has not stayed so. For other balls their own distance.
    mass_error : Tensor
        Largest change of a channel's mass, as a share of the image's mass; infinite for a black
        image that is no longer black. Part of the verdict for a Wasserstein ball.
    box_error : Tensor
        How far pixels leave [0, 1].
    inside : Tensor, booleans
        The verdict: cost <= eps (1 + tolerance) to rounding, box_error <= tolerance, and in a
        Wasserstein ball mass_error <= tolerance.
    exact : bool
        Whether `cost` is the exact distance.
    """

    cost: Tensor
    mass_error: Tensor
    box_error: Tensor
    inside: Tensor
    exact: bool


@torch.no_grad()
def certify(
    x: Tensor,
    x_adv: Tensor | TransportPlan,
    ball,
    exact: bool = True,
    *,
    tolerance: float = TOLERANCE,
    processes: int = 1,
    progress: bool = False,
) -> Certificate:
    r"""Check that images lie in a ball: its budget, the range, and the mass of each channel.

    The mass counts in a `WassersteinBall` alone. For other balls the budget is judged by the
    ball's own `distance`: that of an `InternalWassersteinBall` with a tile is an upper bound.

    Parameters
    ----------
    x : Tensor (B, C, H, W)
        Clean images in [0, 1].
    x_adv : Tensor (B, C, H, W) or TransportPlan
        Images to judge; from a plan, the image that it makes.
    ball : WassersteinBall, InternalWassersteinBall, LinfBall or L2Ball
    exact : bool
        True: the exact distance on the whole grid (network simplex, milliseconds for a digit,
        minutes for a full 64x64 image). False: what the plan pays in the ball's ground cost, an
        upper bound, which needs x_adv to be a plan that starts at x. The plan's own window may
        differ from the ball's, which limits no distance.
    tolerance : float
        Rounding allowed: relative on the budget, absolute on mass and range. The budget also
        gets the rounding of the image's dtype, 1.2e-7 pixels of distance for float32.
    processes : int >= 1
        Solve the exact distances of that many parts of the batch at a time, each on one core.
        Starting them takes seconds: worth it from some thousand digits on.
    progress : bool
        Show a progress bar over the exact distances.

    Returns
    -------
    Certificate

    Raises
    ------
    ValueError
        For bad x, x_adv that is not finite or has another shape, something that is no ball,
        exact=False without a plan, a plan that does not start at x or that holds negative mass.

    Notes
    -----
    A negative pixel has no place in a transport plan: it shows in `box_error` and counts as 0
    in the distance. Channels are scaled to the clean image's shares; what that hides shows in
    `mass_error`. A black image is alone in its Wasserstein ball, since nothing can move to or
    from it. Images in half precision are judged in float32, and mass is summed in float64
    whatever the dtype.
    """
    ground = getattr(ball, "ground_cost", None)
    if not hasattr(ball, "eps") or not hasattr(ball, "distance"):
        raise ValueError(
            f"ball must be a WassersteinBall, an InternalWassersteinBall, a LinfBall or an L2Ball; "
            f"got {type(ball).__name__}"
        )
    checks.images("x", x, black=True)
    plan = x_adv if isinstance(x_adv, TransportPlan) else None
    if not exact and plan is None:
        raise ValueError("exact=False needs the plan's own price: pass a TransportPlan as x_adv")
    if plan is not None:
        checks.same_shape("x_adv", plan.mass[:, :, 0], "x", x)
        plan = TransportPlan(_single(plan.mass), plan.ground_cost)
        _check_plan(plan, _single(x))
    y = x_adv if plan is None else plan.image().to(x.dtype)
    checks.tensor("x_adv", y, 4, "(B, C, H, W)")
    checks.same_shape("x_adv", y, "x", x)
    checks.count("processes", processes)
    x, y = _single(x), _single(y)
    of_mass = isinstance(ground, GroundCost)
    mass_error = _mass_error(x, y, tolerance)
    box_error = torch.maximum(-y, y - 1).clamp_min(0).amax((1, 2, 3))
    if not of_mass:
        within = y.clamp(0, 1) if hasattr(ball, "patch_cost") else y
        cost, exact = ball.distance(x, within), getattr(ball, "tile", None) is None
    elif exact:
        cost = _distances(x, y, ground, processes, progress)
    else:
        same = replace(plan.ground_cost, p=ground.p, norm=ground.norm)
        cost = TransportPlan(plan.mass, same).cost()
    if of_mass:  # nothing leads from black to anything else
        cost = torch.where(mass_error < torch.inf, cost, torch.inf)
    inside = cost <= ball.eps * (1 + tolerance) + torch.finfo(y.dtype).eps
    inside &= box_error <= tolerance
    if of_mass:
        inside &= mass_error <= tolerance
    return Certificate(cost, mass_error, box_error, inside, exact)


def _single(x: Tensor) -> Tensor:
    """In float32 what comes in half of it."""
    return x.float() if torch.finfo(x.dtype).bits < 32 else x


def _check_plan(plan: TransportPlan, x: Tensor) -> None:
    """A plan proves what an image costs only if it starts at x and owes no mass to any pixel."""
    total = x.sum((1, 2, 3), dtype=wide(x.device))
    owed = plan.mass.clamp(max=0).sum((1, 2, 3, 4), dtype=total.dtype).neg()
    if bool((owed > ROUNDING * total).any()):
        raise ValueError(
            f"x_adv must be a plan of mass of at least 0; its smallest entry is "
            f"{float(plan.mass.min()):.3g}"
        )
    gap = (plan.source() - x).abs().sum((1, 2, 3), dtype=total.dtype)
    if bool((gap > ROUNDING * total).any()):
        raise ValueError("x_adv must be a plan that starts at x; its source is another image")


def _mass_error(x: Tensor, y: Tensor, tolerance: float) -> Tensor:
    before, after = (v.sum((2, 3), dtype=wide(x.device)) for v in (x, y))
    total = before.sum(1, keepdim=True)
    error = ((after - before).abs() / total.clamp_min(torch.finfo(total.dtype).tiny)).amax(1)
    black = total[:, 0] == 0
    stays = y.abs().amax((1, 2, 3)) <= tolerance
    return torch.where(black, torch.where(stays, 0.0, torch.inf), error).to(x.dtype)


def _distances(x: Tensor, y: Tensor, cost, processes: int, progress: bool) -> Tensor:
    parts = list(zip(x.detach().cpu().split(PART), y.detach().cpu().split(PART), strict=True))
    work = Parallel(processes, return_as="generator")(delayed(_distance)(*p, cost) for p in parts)
    bar = tqdm(work, total=len(parts), desc="exact distances", disable=not progress, leave=False)
    return torch.cat(list(bar)).to(x.device)


def _distance(x: Tensor, y: Tensor, cost: GroundCost) -> Tensor:
    """Exact cost from x to y with each channel of y scaled to the mass that x has there."""
    dtype = x.dtype
    x, y = x.double(), y.double().clamp_min(0)
    before, after = x.sum((2, 3), keepdim=True), y.sum((2, 3), keepdim=True)
    out = torch.full_like(x[:, 0, 0, 0], torch.inf)
    black = (before == 0).flatten(1).all(1)
    out[black] = 0  # whether y is black too, `_mass_error` says
    same = ((after > 0) == (before > 0)).flatten(1).all(1) & ~black  # a channel gone black: no plan
    if bool(same.any()):
        y = torch.where(after > 0, y * (before / after.clamp_min(1e-300)), 0)[same]
        scale = torch.maximum(x[same], y).amax((1, 2, 3), keepdim=True)
        out[same] = exact(x[same] / scale, y / scale, cost).value
    return out.to(dtype)
