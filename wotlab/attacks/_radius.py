"""How far each image is from breaking."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wotlab._base import checks
from wotlab._base.modes import eval_mode
from wotlab._base.networks import check
from wotlab._base.precision import full_precision
from wotlab.attacks._growing import Search
from wotlab.attacks._objective import objective_of
from wotlab.balls import L2Ball, LinfBall, WassersteinBall


@dataclass(frozen=True)
class Radius:
    """The smallest breaking budget found of each image; all tensors (B,) but `x_adv`.

    Attributes
    ----------
    eps : Tensor
        What `x_adv` spends: for a Wasserstein ball the cost of the plan that made it, in pixels
        of distance. An upper bound of the image's distance to the decision boundary. 0 where the
        clean image is wrong already, infinite where nothing within the ball broke it.
    x_adv : Tensor (B, C, H, W)
        The breaking image; the clean one where there is none.
    steps : Tensor, integers
        Gradient steps of the run that found it, until it was found.
    seconds : float

    Examples
    --------
    >>> from wotlab import attacks, data, models
    >>> model = models.load("digits-standard").double()
    >>> x, y = data.load("digits").tensors(slice(3))
    >>> found = attacks.radius(model, x.double(), y, steps=40, restarts=0)
    >>> model(found.x_adv).argmax(1) == y, bool((found.eps > 0).all())
    (tensor([False, False, False]), True)
    """

    eps: Tensor
    x_adv: Tensor
    steps: Tensor
    seconds: float


def radius(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball: WassersteinBall | L2Ball | LinfBall | None = None,
    *,
    loss: str = "ce",
    steps: int = 250,
    restarts: int = 6,
    window: int | None = 9,
    patience: int = 15,
    step_size: float = 1.0,
    momentum: float = 0.75,
    batch_size: int = 100,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Radius:
    r"""The smallest eps at which each image breaks, as far as the runs of `transport` find it.

    Each image has its own budget. It doubles until the image breaks, then goes below what was
    spent, and so on with half the change at every turn; further runs begin at the best that is
    known. One call gives the accuracy at every eps at once: the share of `eps` above it.

    Parameters
    ----------
    model, x, y, loss, steps, restarts, window, patience, step_size, momentum, batch_size
        As for `transport`. With l2 or l-infinity a step is a fifth of the budget, and window and
        step_size say nothing.
    ball : WassersteinBall, L2Ball or LinfBall
        Its eps is the largest budget of interest; the first one is a 256th of it.
        `WassersteinBall(4.0)` by default: four pixels for all mass.
    generator : torch.Generator, optional
        Of the noise that every other further run starts from.
    progress : bool

    Returns
    -------
    Radius

    Raises
    ------
    ValueError
        As for `transport`; for another ball, or eps = 0.

    Examples
    --------
    >>> from wotlab import attacks, data, models
    >>> model = models.load("digits-standard").double()
    >>> x, y = data.load("digits").tensors(slice(20))
    >>> found = attacks.radius(model, x.double(), y, restarts=0)
    >>> [int((found.eps > eps).sum()) for eps in (0.0, 0.03, 0.1)]  # stand at each budget
    [20, 18, 4]
    """
    start = time.perf_counter()
    ball = WassersteinBall(4.0) if ball is None else ball
    if not isinstance(ball, WassersteinBall | L2Ball | LinfBall):
        found = type(ball).__name__
        raise ValueError(f"ball must be a WassersteinBall, L2Ball or LinfBall; got {found}")
    checks.count("batch_size", batch_size)
    search = Search(ball, steps, step_size, momentum, restarts, patience, window, generator)
    parts = []
    with eval_mode(model):
        check(model, x, y)
        ball.check(x)
        for a, b in zip(full_precision(x).split(batch_size), y.split(batch_size), strict=True):
            parts.append(search(objective_of(model, a, b, False, loss), a, progress=progress))
    eps, x_adv, taken = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("least", "nearest", "found")
    )
    far = eps > ball.eps
    return Radius(
        torch.where(far, torch.inf, eps), torch.where(far[:, None, None, None], x, x_adv), taken,
        time.perf_counter() - start,
    )  # fmt: skip
