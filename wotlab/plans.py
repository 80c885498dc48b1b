"""Local transport plans, the images they make, and certificates of what an image cost."""

from dataclasses import dataclass

import torch
from joblib import Parallel, delayed
from torch import Tensor
from tqdm.auto import tqdm

from wotlab import checks
from wotlab.ground import GroundCost
from wotlab.ot import exact
from wotlab.patches import PatchCost

PART = 50  # images whose exact distances are solved at a time
TOLERANCE = 1e-4  # relative on the budget, absolute on mass and range: float32 images, rounded


@dataclass(frozen=True)
class TransportPlan:
    """Mass that each pixel sends along each step of its window.

    Attributes
    ----------
    mass : Tensor (B, C, K, H, W)
        What pixel (h, w) of channel c sends along step k of `cost.offsets(H, W)`; the sum over
        k is the source image. Non-negative, and zero along steps that leave the image.
    cost_model : GroundCost
        The ground cost, whose window says which K steps there are.
    """

    mass: Tensor
    cost_model: GroundCost

    @classmethod
    def identity(cls, x: Tensor, cost: GroundCost) -> "TransportPlan":
        """The plan that leaves every unit of mass of the images `x` where it is."""
        checks.tensor("x", x, 4, "(B, C, H, W)")
        here = (cost.offsets(*x.shape[-2:], device=x.device) == 0).all(1)
        return cls(x[:, :, None] * here[:, None, None].to(x.dtype), cost)

    @classmethod
    def from_matrix(
        cls, matrix: Tensor, height: int, width: int, cost: GroundCost
    ) -> "TransportPlan":
        """The same plan from its matrix, (B, C, n, n) as in `OTResult.plan`.

        Raises
        ------
        ValueError
            If the matrix moves mass further than the window reaches, or has another shape.
        """
        checks.tensor("matrix", matrix, 4, "(B, C, n, n)")
        b, c, n, m = matrix.shape
        if n != height * width or m != n:
            raise ValueError(
                f"matrix must be (B, C, {height * width}, {height * width}) for a grid of "
                f"{height} x {width}; got {tuple(matrix.shape)}"
            )
        pixels = torch.arange(n, device=matrix.device).reshape(1, 1, height, width)
        target = cost.gather(pixels.to(torch.float64) + 1)[0, 0].long() - 1  # -1: outside
        target = target.reshape(-1, n)
        source = pixels.reshape(1, n).expand_as(target)
        mass = matrix[:, :, source, target.clamp_min(0)] * (target >= 0)
        lost = float((matrix.sum((2, 3)) - mass.sum((2, 3))).abs().max())
        if lost > 1e-6 * float(matrix.sum((2, 3)).max()):
            raise ValueError(
                f"matrix moves mass {lost:.3g} further than the window of {cost.window} pixels "
                f"reaches; use a larger window, or None for the whole grid"
            )
        return cls(mass.reshape(b, c, -1, height, width), cost)

    def source(self) -> Tensor:
        """The image that the plan starts from: (B, C, H, W)."""
        return self.mass.sum(2)

    def image(self) -> Tensor:
        """The image that the plan ends at: (B, C, H, W)."""
        return self.cost_model.scatter(self.mass)

    def cost(self) -> Tensor:
        r"""Price of the plan, sum_i sum_d mass_i(d) C(d), for mass 1 over all channels: (B,).

        An upper bound of the exact transport cost between `source` and `image`.
        """
        h, w = self.mass.shape[-2:]
        c = self.cost_model.costs(h, w, self.mass.device, self.mass.dtype)
        paid = torch.einsum("bckhw,k->b", self.mass, c)
        return paid / self.mass.sum((1, 2, 3, 4))


@dataclass(frozen=True)
class Certificate:
    """What an image spent of its budget, one entry an image. All tensors (B,).

    Attributes
    ----------
    cost : Tensor
        Transport cost between x and x_adv, each scaled to mass 1: exact (by network simplex on
        the whole grid) or, where a plan was given and `exact=False`, the plan's own price, an
        upper bound.
    mass_error : Tensor
        Largest change of a channel's mass, as a share of the image's mass.
    box_error : Tensor
        How far pixels leave [0, 1].
    inside : Tensor, booleans
        The verdict: cost <= eps (1 + tolerance) to rounding, mass_error and box_error <= tolerance.
    exact : bool
        Whether `cost` is the exact distance.
    """

    cost: Tensor
    mass_error: Tensor
    box_error: Tensor
    inside: Tensor
    exact: bool


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
    r"""Check that images lie in a Wasserstein ball: budget, mass of each channel, range.

    For an `InternalWassersteinBall`, whose patches have no mass to keep: budget and range; with a
    tile by an upper bound of the distance.

    Parameters
    ----------
    x : Tensor (B, C, H, W)
        Clean images in [0, 1].
    x_adv : Tensor (B, C, H, W) or TransportPlan
        Images to judge; from a plan, the image that it makes.
    ball : WassersteinBall or InternalWassersteinBall
        Its `eps` and `cost`.
    exact : bool
        True: the exact distance on the whole grid (network simplex, milliseconds for a digit,
        minutes for a full 64x64 image). False: the plan's own price, an upper bound, which
        needs x_adv to be a plan that starts at x.
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
        For bad x, x_adv that is not finite or has another shape, exact=False without a plan,
        a plan that does not start at x.

    Notes
    -----
    A negative pixel has no place in a transport plan: it shows in `box_error` and counts as 0
    in the distance. Channels are scaled to the clean image's shares; what that hides shows in
    `mass_error`.
    """
    if not hasattr(ball, "cost"):
        raise ValueError(
            f"ball must be a WassersteinBall or an InternalWassersteinBall; got "
            f"{type(ball).__name__}, whose own `contains` is exact"
        )
    of_patches = isinstance(ball.cost, PatchCost)
    checks.images("x", x, black=of_patches)
    plan = x_adv if isinstance(x_adv, TransportPlan) else None
    y = plan.image() if plan else x_adv
    checks.tensor("x_adv", y, 4, "(B, C, H, W)")
    checks.same_shape("x_adv", y, "x", x)
    if not exact and plan is None:
        raise ValueError("exact=False needs the plan's own price: pass a TransportPlan as x_adv")
    if plan and float((plan.source() - x).abs().max()) > tolerance:
        raise ValueError("x_adv must be a plan that starts at x; its source is another image")
    total = x.sum((1, 2, 3)).clamp_min(torch.finfo(x.dtype).tiny)
    before, after = x.sum((2, 3)), y.sum((2, 3))
    mass_error = ((after - before).abs() / total[:, None]).amax(1)
    box_error = torch.maximum(-y, y - 1).clamp_min(0).amax((1, 2, 3))
    checks.count("processes", processes)
    if of_patches:
        cost, exact = ball.distance(x, y.clamp(0, 1)).detach(), ball.tile is None
    else:
        cost = _distances(x, y, ball.cost, processes, progress) if exact else plan.cost()
    inside = cost <= ball.eps * (1 + tolerance) + torch.finfo(y.dtype).eps
    inside &= ((mass_error <= tolerance) | of_patches) & (box_error <= tolerance)
    return Certificate(cost, mass_error, box_error, inside, exact)


def _distances(x: Tensor, y: Tensor, cost, processes: int, progress: bool) -> Tensor:
    parts = list(zip(x.detach().cpu().split(PART), y.detach().cpu().split(PART), strict=True))
    work = Parallel(processes, return_as="generator")(delayed(_distance)(*p, cost) for p in parts)
    bar = tqdm(work, total=len(parts), desc="exact distances", disable=not progress, leave=False)
    return torch.cat(list(bar)).to(x.device)


def _distance(x: Tensor, y: Tensor, cost: GroundCost) -> Tensor:
    """Exact cost from x to y with each channel of y scaled to the mass that x has there."""
    y = y.clamp_min(0)
    before, after = x.sum((2, 3), keepdim=True), y.sum((2, 3), keepdim=True)
    out = torch.full_like(x[:, 0, 0, 0], torch.inf)
    same = ((after > 0) == (before > 0)).flatten(1).all(1)  # a channel gone black: no plan
    if bool(same.any()):
        y = torch.where(after > 0, y * (before / after.clamp_min(1e-30)), 0)[same]
        scale = torch.maximum(x[same], y).amax((1, 2, 3), keepdim=True)
        out[same] = exact(x[same] / scale, y / scale, cost).primal
    return out
