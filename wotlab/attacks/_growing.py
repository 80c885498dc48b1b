"""Budgets that overshoot until an image breaks, then close in on the least that breaks it."""

from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Self, cast

import torch
from torch import Tensor

from wotlab._base import checks, draws
from wotlab._base.networks import logits_of
from wotlab.attacks._loop import Moved, Stepper, climb
from wotlab.attacks._mirror_ascent import Mirror
from wotlab.attacks._objective import Objective
from wotlab.attacks._result import Best
from wotlab.balls import L2Ball, LinfBall, WassersteinBall

GROWTH = 1.0  # of a budget a step, until the image breaks
DOUBLINGS = 15  # what no budget breaks that is 30,000 times the first, no larger one will
FORGET = 0.03  # of the potential a step: what was learned at one budget misleads at another
FINEST = 0.01  # relative change of a cost that counts as nearer
NOISE = 3.0  # of a further run's start, in steps: enough to end in another plan
STAY = 4  # a run that stays at its budget has so many times the patience
START = 256  # of its largest budget a radius begins at this part: eight doublings
HOPE = 1.5  # images that needed more than this many times the budget are not tried again


@dataclass(eq=False)
class Growing(Stepper):
    """Each image's budget doubles until it breaks, then shrinks, by half as much at each turn.

    `inner` is a rule with budgets: it makes images that spend at most `budget`, (B,).
    """

    inner: "Mirror | Bounded"
    first: Tensor
    growth: float = GROWTH
    alone = True

    def start(self, x: Tensor) -> Moved:
        self.inner = copy(self.inner)
        begin = self.inner.start(x)
        # the first step grows it to `first`
        self.budget = self.first.to(self.inner.budget) / (1 + self.growth)
        self.rate = torch.full_like(self.budget, self.growth)
        self.was, self.spent = torch.zeros_like(self.rate, dtype=torch.bool), begin[1]
        return begin

    def step(self, z: Tensor, gradient: Tensor, loss: Tensor, broken: Tensor, t: int) -> Moved:
        self.rate = torch.where(broken != self.was, self.rate / 2, self.rate)
        lower, higher = self.spent * (1 - self.rate), self.budget * (1 + self.rate)
        self.budget = torch.where(broken, lower, higher)
        self.was, self.inner.budget = broken, self.budget
        z, self.spent = self.inner.step(z, gradient, loss, broken, t)
        return z, self.spent


@dataclass(eq=False)
class Bounded(Stepper):
    """Steepest ascent with momentum in l2 or l-infinity; a step is a part of the budget."""

    ball: LinfBall | L2Ball
    momentum: float
    part: float = 0.2
    alone = True

    def __post_init__(self) -> None:
        checks.share("momentum", self.momentum, one=False)

    def start(self, x: Tensor) -> Moved:
        self.x, self.velocity = x, torch.zeros_like(x)
        self.budget = x.new_full((len(x),), self.ball.eps)
        return x, torch.zeros_like(self.budget)

    def step(self, z: Tensor, gradient: Tensor, loss: Tensor, broken: Tensor, t: int) -> Moved:
        self.velocity = self.momentum * self.velocity + self.ball.step(gradient, 1.0)
        eps = self.budget[:, None, None, None]
        z = self.ball.project(self.x, z + self.part * eps * self.ball.step(self.velocity, 1.0), eps)
        return z, self.ball.distance(self.x, z)


class Closest(Best):
    """The best image within `goal`, and the cheapest breaking one, however much it costs.

    An image leaves when it is within the goal, or has not come nearer for `patience` steps, the
    first ones while its budget doubles not counted.
    """

    def __init__(self, x: Tensor, goal: float, patience: int):
        super().__init__(x)
        self.goal, self.patience = goal, patience
        self.nearest, self.least = x.clone(), torch.full_like(self.cost, torch.inf)
        self.found = torch.zeros_like(self.steps)  # the step at which the nearest was

    def offer(
        self, index: Tensor, z: Tensor, broken: Tensor, cost: Tensor, loss: Tensor, t: int,
        alive: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        alive = torch.ones_like(broken) if alive is None else alive
        nearer = alive & broken & (cost < (1 - FINEST) * self.least[index])
        self.put(index, nearer, nearest=z, least=cost, found=t)
        super().offer(index, z, broken, cost, loss, t, alive & (cost <= self.goal))
        self.put(index, alive, steps=t)
        waits = self.least[index].isinf() & (t < DOUBLINGS)
        late = t - self.found[index] >= self.patience
        return (waits | ~late) & (self.least[index] > self.goal)

    def add(self, index: Tensor, other: Self) -> None:
        """What another run found of the images in `index`, where that is better."""
        nearer, won = other.least < self.least[index], other.broken
        at = index[nearer]
        self.nearest[at], self.least[at] = other.nearest[nearer], other.least[nearer]
        self.found[at] = self.steps[at] + other.found[nearer]
        self.take(index[won], other, won)
        self.steps[index[~won]] += other.steps[~won]


@dataclass(frozen=True)
class Search:
    """How `transport` and `radius` look for the cheapest breaking images.

    The first run climbs the loss from the clean image. What it leaves is tried again towards the
    likeliest other class, then from noise, and so on in turn: a network that stops one way out
    often leaves another open. Targeted, or when the classes are used up, all start from noise.
    The last run stays at the goal, where there is one.
    """

    ball: WassersteinBall | L2Ball | LinfBall
    steps: int
    step_size: float
    momentum: float
    restarts: int
    patience: int
    window: int | None
    generator: torch.Generator | None

    def __post_init__(self) -> None:
        self.rule(noise=False)  # checks what it is made of
        draws.check(self.generator)
        checks.count("restarts", self.restarts, zero=True)
        checks.count("patience", self.patience)

    def __call__(
        self, objective: Objective, x: Tensor, *, goal: float = 0.0, progress: bool = False,
        early_stop: bool = True,
    ) -> Closest:  # fmt: skip
        """The best image within `goal` and the cheapest breaking one; for goal 0 that alone."""
        first = x.new_full((len(x),), goal or self.ball.eps / START)
        best = self.run(objective, x, Growing(self.rule(False), first), goal, progress)
        if not self.restarts:
            return best
        classes = logits_of(objective.model, x).argsort(dim=1, descending=True)
        classes = classes[classes != objective.y[:, None]].reshape(len(x), -1)
        for turn in range(self.restarts):
            hopeful = best.least <= (HOPE * goal or self.ball.eps)
            left = (hopeful & (best.least > goal)).nonzero()[:, 0]
            if not len(left):
                break
            some, pick = objective.select(left), turn // 2
            stays = bool(goal) and turn == self.restarts - 1
            aimed = turn % 2 == 0 and pick < classes.shape[1] and not objective.targeted
            if aimed and not stays:
                some = replace(some, aims=classes[left, pick])
            rule = self.rule(noise=not (aimed or stays))
            first = x.new_full((len(left),), goal) if goal else best.least[left]
            stepper = Growing(rule, first, growth=0.0 if stays else GROWTH)
            best.add(left, self.run(some, x[left], stepper, goal, progress))
        return best

    def run(
        self, objective: Objective, x: Tensor, stepper: Growing, goal: float, progress: bool
    ) -> Closest:
        longer = 1 if stepper.growth else STAY
        kind = partial(Closest, goal=goal, patience=longer * self.patience)
        best = climb(stepper, objective, x, self.steps, progress=progress, kind=kind)
        return cast(Closest, best)

    def rule(self, noise: bool) -> Mirror | Bounded:
        """How the images of a run follow the gradient."""
        if not isinstance(self.ball, WassersteinBall):
            return Bounded(self.ball, self.momentum)
        ball = replace(self.ball, ground_cost=replace(self.ball.ground_cost, window=self.window))
        size = NOISE * self.step_size if noise else 0.0
        return Mirror(ball, self.step_size, self.momentum, FORGET, size, self.generator)
