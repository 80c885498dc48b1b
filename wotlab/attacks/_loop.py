"""The one loop of all attacks that climb."""

import time
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from wotlab._base import checks
from wotlab.attacks._objective import Objective, attacked, check, objective_of, wide
from wotlab.attacks._result import AttackResult, join, judge
from wotlab.balls import Ball, InternalWassersteinBall, WassersteinBall, certify


class Rule(Protocol):
    """How the images of a batch follow the gradient; keeps its own state."""

    def start(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Where the first gradient is taken, x itself or other images, and what those spend."""
        ...

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
        self.misread = self.broken.clone()  # whether the clean image is broken as it is

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


class Last(Found):
    """Keeps the last image of each, for methods whose answer is where they end.

    An image that is misread as it is stays so: it lies in its own ball.
    """

    def offer(self, index: Tensor, z, broken, cost, loss, t: int) -> Tensor:
        some = ~self.misread[index] | (t == 0)
        at = index[some]
        self.x_adv[at], self.broken[at], self.steps[at] = z[some], broken[some], t
        self.cost[at], self.loss[at] = cost[some], loss[some]
        return torch.ones_like(broken)


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

    The clean image counts: what is broken from the start takes no step. Where a rule starts
    elsewhere, it is looked at apart, and all gradients are taken at images of the climb. With
    `early_stop` off (training) all images go on to the end. Another `found` may want another
    image of each.
    """
    found, index = found or Found(x), torch.arange(len(x), device=x.device)

    def keep(go_on: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
        """What belongs to the images that go on; all others are forgotten."""
        nonlocal objective, index
        if not early_stop or bool(go_on.all()):
            return parts
        rule.select(go_on)
        objective, index = objective.select(go_on), index[go_on]
        return tuple(part[go_on] for part in parts)

    z, spent = rule.start(x)
    if z is not x:
        loss, found.misread = objective.value(x)
        free = torch.zeros_like(spent)
        z, spent = keep(found.offer(index, x, found.misread, free, loss, 0), z, spent)
    for t in tqdm(range(steps), disable=not progress, leave=False):
        if not len(index):
            return found
        gradient, loss, broken = objective.gradient(z)
        if z is x:
            found.misread = broken
        go_on = found.offer(index, z, broken, spent, loss, t)
        z, gradient, loss, broken = keep(go_on, z, gradient, loss, broken)
        if len(index):
            z, spent = rule.step(z, gradient, loss, broken, t)
    if len(index):
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
    run: Callable[[Objective, Tensor], Found],
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    targeted: bool,
    loss: str,
    batch_size: int,
    exact: bool = False,
    objective: Callable[..., Objective] = objective_of,
) -> AttackResult:
    """Check what the user gave, `run` part by part, judge.

    `objective(model, x, y, targeted, loss)` makes what is climbed. `exact` asks for the ball's
    distance, once and at the end, where the run has no price of its own. Images are float32 at
    least: a plan in half precision would lose more mass to rounding than the ball allows.
    """
    start = time.perf_counter()
    checks.count("batch_size", batch_size)
    if not isinstance(ball, Ball):
        raise ValueError(
            f"ball must be a threat model, such as LinfBall(0.1) or WassersteinBall(0.1); "
            f"got {ball!r}"
        )
    with attacked(model):
        check(model, x, y, loss)
        if isinstance(ball, InternalWassersteinBall):
            ball.check(x)
        parts = []
        for a, b in zip(wide(x).split(batch_size), y.split(batch_size), strict=True):
            found = run(objective(model, a, b, targeted, loss), a)
            cost = distance(ball, a, found.x_adv) if exact else found.cost
            parts.append(judge(a, found, cost, ball, start))
    return join(parts, start)


def climber(
    rule: Callable[[], Rule],
    steps: int,
    *,
    early_stop: bool,
    progress: bool,
    again: Callable[[Objective, Tensor, Found], None] | None = None,
    kind: type[Found] = Found,
) -> Callable[[Objective, Tensor], Found]:
    """The `run` of an attack that climbs. `again` goes on where the first climb failed."""
    checks.count("steps", steps)

    def run(objective: Objective, x: Tensor) -> Found:
        options = {"early_stop": early_stop, "progress": progress, "found": kind(x)}
        found = climb(rule(), objective, x, steps, **options)
        if again is not None:
            again(objective, x, found)
        return found

    return run


def distance(ball: Ball, x: Tensor, z: Tensor) -> Tensor:
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
