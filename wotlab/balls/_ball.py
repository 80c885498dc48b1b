"""What all threat models share, and the certificate that an image lies in one."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from wotlab._base import checks, draws
from wotlab._base.precision import full_precision, wide
from wotlab.plans import TransportPlan

NOISE = 0.1  # deviation of a random start, in brightness, where eps is no brightness
#: Of certificates: relative on the budget, absolute on mass and range. Float32 images, rounded.
TOLERANCE = 1e-4
ROUNDING = 1e-5  # share of an image's mass by which a plan's source may differ from the image


@dataclass(frozen=True)
class Certificate:
    """What an image spent of its budget, one entry an image. All tensors (B,).

    Attributes
    ----------
    cost : Tensor
        Transport cost between x and x_adv, each scaled to mass 1: exact (by network simplex on
        the whole grid) or, where a plan was given and `exact=False`, the plan's own cost, an
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

    Examples
    --------
    >>> import torch
    >>> from wotlab import WassersteinBall, certify
    >>> x = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    >>> x[0, 0, 1, 1] = 1.0
    >>> seen = certify(x, 0.5 * x, WassersteinBall(0.1))  # dimmed
    >>> float(seen.cost), float(seen.mass_error), bool(seen.inside)
    (0.0, 0.5, False)
    """

    cost: Tensor
    mass_error: Tensor
    box_error: Tensor
    inside: Tensor
    exact: bool


@dataclass(frozen=True)
class Ball(ABC):
    """What all threat models share: a budget, and all that attacks and certificates ask of it.

    A ball of a new kind says what its `distance` is and how to `project`; the rest has defaults.

    Parameters
    ----------
    eps : float >= 0
        The budget, in the units of the ball's distance.

    Examples
    --------
    >>> import torch
    >>> from wotlab import LinfBall
    >>> ball, x = LinfBall(0.1), torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
    >>> ball.contains(x, x + 0.2), ball.contains(x, ball.project(x, x + 0.2))
    (tensor([False]), tensor([True]))
    """

    keeps_mass: ClassVar[bool] = False  # of each channel: its images are made by transport plans
    closed: ClassVar[bool] = False  # its projection is a formula, without loops that end by a test
    norm: ClassVar[str | None] = None  # what other libraries call the distance: "Linf" or "L2"
    whole: ClassVar[float | None] = None  # eps at which it holds every image, where there is one

    eps: float

    def __post_init__(self) -> None:
        checks.positive("eps", self.eps, zero=True)

    @classmethod
    def require(cls, ball: object, wanted: str = "", found: str = "") -> Self:
        """The ball, if it is one of this kind; else a ValueError that says what was found."""
        if not isinstance(ball, cls):
            found = found or type(ball).__name__
            raise ValueError(f"ball must be {wanted or checks.one(cls)}; got {found}")
        return ball

    @property
    def exact(self) -> bool:
        """Whether `distance` is the exact one, not an upper bound."""
        return True

    @abstractmethod
    def distance(self, x: Tensor, z: Tensor) -> Tensor:
        """Distance from x to z: (B,)."""

    @abstractmethod
    def project(self, x: Tensor, w: Tensor) -> Tensor:
        """An image of the ball around x near w."""

    def project_roughly(self, x: Tensor, w: Tensor) -> Tensor:
        """An image of the ball on the way to w; any will do, so that it may be quick."""
        return self.project(x, w)

    def check(self, x: Tensor) -> None:  # noqa: B027, nothing to ask of images by default
        """ValueError for images that the ball cannot be around; attacks ask before they begin."""

    def noise(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """What a random start adds to the images, before it is projected: Gaussian, of 0.1."""
        return NOISE * draws.normal(x, generator)

    def step(self, gradient: Tensor, size: float) -> Tensor:
        """Along the gradient, scaled so that the most changed pixel moves by `size`.

        Steepest ascent in l2, the step of Hu et al. (2020); it follows the gradient where a sign
        step forgets how much each pixel matters.
        """
        largest = gradient.abs().amax((1, 2, 3), keepdim=True)
        return size * gradient / largest.clamp_min(torch.finfo(gradient.dtype).tiny)

    def default_step(self, x: Tensor) -> Tensor | float:
        """Step of projected gradients, in units of brightness: eps / 4."""
        return self.eps / 4

    def longest_step(self, x: Tensor) -> Tensor | float:
        """The one step of `fgsm`: as long as the ball is wide, where that is a brightness."""
        return self.eps if self.norm else self.default_step(x)

    def spent(self, x: Tensor, z: Tensor, processes: int = 1, progress: bool = False) -> Tensor:
        """What z is judged by, (B,): its distance, also where z itself lies in no ball at all."""
        return self.distance(x, z)

    def bound(self, plan: TransportPlan) -> Tensor | None:
        """An upper bound of the distance, (B,), where plans give one."""
        return None

    def judge(
        self, x: Tensor, z: Tensor, cost: Tensor, exact: bool, tolerance: float = TOLERANCE
    ) -> Certificate:
        """The verdict on images z, of which `cost` is known; all else is measured."""
        mass_error = _mass_error(x, z, tolerance)
        box_error = torch.maximum(-z, z - 1).clamp_min(0).amax((1, 2, 3))
        if self.keeps_mass:  # nothing leads from black to anything else
            cost = torch.where(mass_error < torch.inf, cost, torch.inf)
        inside = cost <= self.eps * (1 + tolerance) + torch.finfo(z.dtype).eps
        inside &= box_error <= tolerance
        if self.keeps_mass:
            inside &= mass_error <= tolerance
        return Certificate(cost, mass_error, box_error, inside, exact)

    def contains(self, x: Tensor, z: Tensor) -> Tensor:
        """Whether z lies in the ball around x, by the certificate: booleans (B,)."""
        return certify(x, z, self).inside


@torch.no_grad()
def certify(
    x: Tensor,
    x_adv: Tensor | TransportPlan,
    ball: Ball,
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

    Examples
    --------
    >>> import torch
    >>> from wotlab import WassersteinBall, certify
    >>> x = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    >>> x[0, 0, 1, 1] = 1.0
    >>> z = x.roll(1, 3)  # all mass to the right by one pixel
    >>> [bool(certify(x, z, WassersteinBall(eps)).inside) for eps in (1.0, 0.9)]
    [True, False]
    """
    Ball.require(ball, "a WassersteinBall, an InternalWassersteinBall, a LinfBall or an L2Ball")
    checks.images("x", x, black=True)
    if not exact and not isinstance(x_adv, TransportPlan):
        raise ValueError("exact=False needs the plan's own price: pass a TransportPlan as x_adv")
    cost = None
    if isinstance(x_adv, TransportPlan):
        checks.same_shape("x_adv", x_adv.mass[:, :, 0], "x", x)
        plan = TransportPlan(full_precision(x_adv.mass), x_adv.ground_cost)
        _check_plan(plan, full_precision(x))
        x_adv, cost = plan.image().to(x.dtype), None if exact else ball.bound(plan)
    checks.tensor("x_adv", x_adv, 4, "(B, C, H, W)")
    checks.same_shape("x_adv", x_adv, "x", x)
    checks.count("processes", processes)
    x, z, exact = full_precision(x), full_precision(x_adv), cost is None and ball.exact
    cost = ball.spent(x, z, processes, progress) if cost is None else cost
    return ball.judge(x, z, cost, exact, tolerance)


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
