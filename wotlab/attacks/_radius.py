"""How far each image is from breaking: one run whose budgets grow, then close in."""

import time
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from wotlab._base import checks
from wotlab._base.modes import eval_mode
from wotlab._base.networks import check
from wotlab._base.precision import full_precision
from wotlab.attacks._loop import Moved, climb
from wotlab.attacks._mirror_ascent import Mirror
from wotlab.attacks._objective import objective_of
from wotlab.attacks._result import Best
from wotlab.balls import WassersteinBall
from wotlab.ot import GroundCost

FORGET = 0.03  # of the scores a step: what was learned at a small eps misleads at a large one
FINEST = 0.01  # relative change of a budget at which an image is done


@dataclass(frozen=True)
class Radius:
    """The smallest breaking budget found of each image; all tensors (B,) but `x_adv`.

    Attributes
    ----------
    eps : Tensor
        Cost of the plan that made `x_adv`, in pixels of distance: an upper bound of the
        image's distance to the decision boundary. 0 where the clean image is wrong already,
        infinite where nothing up to `largest` broke it.
    x_adv : Tensor (B, C, H, W)
        The breaking image; the clean one where there is none.
    steps : Tensor, integers
        Gradient steps at which it was found.
    seconds : float
    """

    eps: Tensor
    x_adv: Tensor
    steps: Tensor
    seconds: float


@dataclass(eq=False)
class Growing(Mirror):
    """Mirror ascent whose budgets grow until an image breaks, then shrink, ever more finely."""

    growth: float = 0.2
    largest: float = 4.0

    def start(self, x: Tensor) -> Moved:
        self.rate = x.new_full((len(x),), self.growth)
        self.was, self.spent = torch.zeros_like(self.rate, dtype=torch.bool), self.rate
        return super().start(x)

    def step(self, z: Tensor, gradient: Tensor, loss: Tensor, broken: Tensor, t: int) -> Moved:
        if t > 0:
            self.rate = torch.where(broken != self.was, self.rate / 2, self.rate)
            lower, higher = self.spent * (1 - self.rate), self.budget * (1 + self.rate)
            self.budget = torch.where(broken, lower, higher).clamp(max=self.largest)
            self.scores *= 1 - FORGET
        self.was = broken
        z, self.spent = super().step(z, gradient, loss, broken, t)
        return z, self.spent


class Cheapest(Best):
    """Keeps the cheapest breaking image; lets go of one that has not become cheaper for long."""

    def __init__(self, x: Tensor, patience: int):
        super().__init__(x)
        self.cost.fill_(torch.inf)
        self.patience = patience

    def offer(
        self, index: Tensor, z: Tensor, broken: Tensor, cost: Tensor, loss: Tensor, t: int
    ) -> Tensor:
        better = broken & (cost < (1 - FINEST) * self.cost[index])
        at = index[better]
        self.x_adv[at], self.cost[at] = z[better], cost[better]
        self.steps[at], self.broken[at] = t, True
        stale = self.broken[index] & (t - self.steps[index] >= self.patience)
        return ~stale & (self.cost[index] > 0)


def radius(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ground_cost: GroundCost | None = None,
    *,
    smallest: float = 0.01,
    largest: float = 4.0,
    growth: float = 0.2,
    patience: int = 8,
    steps: int = 250,
    loss: str = "ce",
    step_size: float = 1.0,
    momentum: float = 0.75,
    batch_size: int = 1000,
    progress: bool = False,
) -> Radius:
    r"""The smallest eps at which each image breaks, as far as one run of `transport` finds it.

    Each image has its own budget. It grows by the factor 1 + `growth` a step until the image
    breaks, then goes a little below what was spent, and so on with half the change at every
    turn. One run gives the accuracy at every eps at once: the share of `eps` above it. A run of
    `transport` at one eps is a little stronger at that eps, since it stays there for longer.

    Parameters
    ----------
    model, x, y, loss, step_size, momentum, batch_size, progress
        As for `transport`.
    ground_cost : GroundCost, optional
        Its window limits the moves. `GroundCost()` by default.
    smallest, largest : float
        Budgets to begin and to end with, in pixels of distance. Between them lie
        log(largest / smallest) / log(1 + growth) steps, 33 by default. Images that break at
        `smallest` shrink below it.
    growth : float
    patience : int
        An image leaves when so many steps have not made it cheaper by one per cent. Measured on
        MNIST: growth 0.1 and patience 15 take 1.7 times as long for budgets 1 to 5 % smaller;
        patience 1 takes 50 to 70 % of the time, for budgets 35 to 140 % larger. On a linear
        model, where the least budget is a linear program, the defaults end up to 12 % above it,
        growth 0.05 and patience 40 up to 2 %.
    steps : int
        At most.

    Returns
    -------
    Radius

    Raises
    ------
    ValueError
        As for `transport`; for numbers that are not positive, or smallest >= largest.
    """
    start = time.perf_counter()
    for name, value in (("smallest", smallest), ("largest", largest), ("growth", growth)):
        checks.positive(name, value)
    if smallest >= largest:
        raise ValueError(f"smallest must be below largest; got {smallest} and {largest}")
    ball = WassersteinBall(smallest, ground_cost or GroundCost())
    stepper = Growing(ball, step_size, momentum, growth=growth, largest=largest)
    kind, parts = partial(Cheapest, patience=patience), []
    with eval_mode(model):
        check(model, x, y)
        for a, b in zip(full_precision(x).split(batch_size), y.split(batch_size), strict=True):
            objective = objective_of(model, a, b, False, loss)
            parts.append(climb(stepper, objective, a, steps, progress=progress, kind=kind))
    eps, x_adv, taken = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("cost", "x_adv", "steps")
    )
    return Radius(eps, x_adv, taken, time.perf_counter() - start)
