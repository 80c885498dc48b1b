"""The one loop of all attacks that climb."""

import time
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from wotlab import checks
from wotlab.attacks.objective import Objective, attacked, check, objective_of
from wotlab.attacks.result import AttackResult, join, judge
from wotlab.balls import InternalWassersteinBall, WassersteinBall
from wotlab.plans import certify


class Rule(Protocol):
    """How the images of a batch follow the gradient; keeps its own state."""

    def start(self, x: Tensor) -> None: ...

    def step(
        self, z: Tensor, gradient: Tensor, loss: Tensor, broken: Tensor, t: int
    ) -> tuple[Tensor, Tensor]:
        """The next images (B, C, H, W), and what each has spent of its budget, (B,)."""
        ...

    def select(self, keep: Tensor) -> None:
        """Forget the images that are not in `keep`, booleans (B,)."""
        ...


class Found:
    """The best image of each of a batch, with its loss, cost, and the step it was found at."""

    def __init__(self, x: Tensor):
        self.x_adv, self.broken = x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.cost, self.loss = x.new_zeros(len(x)), x.new_full((len(x),), -torch.inf)
        self.steps = torch.zeros(len(x), dtype=torch.long, device=x.device)

    def offer(self, index: Tensor, z, broken, cost, loss, t: int) -> Tensor:
        """Take what is broken first, and else what has the larger loss; says who may go on."""
        better = (broken & ~self.broken[index]) | (
            (broken == self.broken[index]) & (loss > self.loss[index])
        )
        self.steps[index[~self.broken[index]]] = t
        at = index[better]
        self.x_adv[at], self.broken[at] = z[better], broken[better]
        self.cost[at], self.loss[at] = cost[better], loss[better]
        return ~broken

    def take(self, index: Tensor, other: "Found", rows: Tensor) -> None:
        """Replace what was found of `index` by what another run found in `rows`."""
        self.steps[index] += other.steps[rows]
        for name in ("x_adv", "broken", "cost", "loss"):
            getattr(self, name)[index] = getattr(other, name)[rows]


def climb(
    rule: Rule,
    objective: Objective,
    x: Tensor,
    steps: int,
    *,
    early_stop: bool = True,
    progress: bool = False,
    found: Found | None = None,
) -> Found:
    """Climb the loss for `steps` gradients; images that are done leave the batch.

    The clean image counts: what is broken from the start takes no step. With `early_stop` off
    (training) all images go on to the end. Another `found` may want another image of each.
    """
    found, index = found or Found(x), torch.arange(len(x), device=x.device)
    rule.start(x)
    z, spent = x, x.new_zeros(len(x))
    for t in tqdm(range(steps), disable=not progress, leave=False):
        gradient, loss, broken = objective.gradient(z)
        go_on = found.offer(index, z, broken, spent, loss, t)
        if early_stop and not bool(go_on.all()):
            if not bool(go_on.any()):
                return found
            rule.select(go_on)
            objective, index = objective.select(go_on), index[go_on]
            z, gradient = z[go_on], gradient[go_on]
            loss, broken = loss[go_on], broken[go_on]
        z, spent = rule.step(z, gradient, loss, broken, t)
    loss, broken = objective.value(z)
    found.offer(index, z, broken, spent, loss, steps)
    return found


def retry(
    rule: Rule,
    objective: Objective,
    x: Tensor,
    steps: int,
    found: Found,
    *,
    aims: Tensor | None = None,
    progress: bool = False,
) -> None:
    """Climb once more from the images that still stand, and take what breaks.

    `aims` are the classes that the images shall go to, (B,).
    """
    left = (~found.broken).nonzero()[:, 0]
    if len(left):
        some = objective.select(left)
        some = some if aims is None else some.towards(aims[left])
        more = climb(rule, some, x[left], steps, progress=progress)
        won = more.broken.nonzero()[:, 0]
        found.take(left[won], more, won)


def attack(
    rule: Callable[[], Rule],
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball,
    *,
    targeted: bool,
    loss: str,
    steps: int,
    batch_size: int,
    early_stop: bool,
    progress: bool,
    again: Callable[[Objective, Tensor, Found], None] | None = None,
    exact: bool = False,
    objective: Callable[..., Objective] = objective_of,
) -> AttackResult:
    """Check what the user gave, climb part by part, judge. `again` goes on where that failed.

    `objective(model, x, y, targeted, loss)` makes what is climbed. `exact` asks for the ball's
    distance, once and at the end, where the rule has no price of its own.
    """
    start = time.perf_counter()
    checks.count("steps", steps)
    checks.count("batch_size", batch_size)
    with attacked(model):
        check(model, x, y, loss, black=not isinstance(ball, WassersteinBall))
        if isinstance(ball, InternalWassersteinBall):
            ball.check(x)
        parts = []
        for a, b in zip(x.detach().split(batch_size), y.split(batch_size), strict=True):
            aim = objective(model, a, b, targeted, loss)
            found = climb(rule(), aim, a, steps, early_stop=early_stop, progress=progress)
            if again is not None:
                again(aim, a, found)
            cost = distance(ball, a, found.x_adv) if exact else found.cost
            parts.append(judge(a, found.x_adv, found.broken, cost, ball, found.steps, start))
    return join(parts, start)


def distance(ball, x: Tensor, z: Tensor) -> Tensor:
    """The ball's distance; on a WassersteinBall also between images of unequal mass."""
    if isinstance(ball, WassersteinBall):
        return certify(x, z, ball).cost
    return ball.distance(x, z)


def on_plans(ball) -> WassersteinBall:
    """The ball, if it is one whose images are made by plans."""
    if not isinstance(ball, WassersteinBall):
        raise ValueError(
            f"ball must be a WassersteinBall; got {type(ball).__name__}. For other balls use pgd"
        )
    return ball


def not_on_mass(ball):
    """The ball, unless it wants images that keep their mass."""
    if isinstance(ball, WassersteinBall):
        raise ValueError(
            "ball must not be a WassersteinBall: a deformed image does not keep its mass. Take an "
            "InternalWassersteinBall, L2Ball or LinfBall"
        )
    return ball
