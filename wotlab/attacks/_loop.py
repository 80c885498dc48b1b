"""The one loop of all attacks that climb, and what happens around it."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy
from functools import partial

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from wotlab._base import checks
from wotlab._base.batch import Batch, State
from wotlab._base.modes import eval_mode
from wotlab._base.networks import check
from wotlab._base.precision import full_precision
from wotlab.attacks._graph import WORTH, Work, again, recorded, stays
from wotlab.attacks._objective import Kind, Objective, no_answer, objective_of
from wotlab.attacks._result import AttackResult, Best, join, judge
from wotlab.balls import Ball, WassersteinBall

# Steps between two looks at who is done, by device. To look, a host waits until its GPU is idle;
# not to look, the GPU takes steps with images that are done
LOOK = {"cpu": 1, "cuda": 8}
FEW = 100  # images that go along in recorded steps: to record fewer anew takes longer

Moved = tuple[Tensor, Tensor]  # images (B, C, H, W), and what each has spent of its budget, (B,)


class Stepper(State, ABC):
    """How the images of a batch follow the gradient; keeps its own state.

    All tensors of its state, alone, in tuples or in dicts, have one row an image. `start` makes
    all of them anew: a stepper may climb again, on other images. `alone` says that its steps, for
    t > 0, ask the host for nothing, so that a GPU may record them; t is then a tensor (B,). Where
    a training records, the first step is among them.
    """

    alone = False

    @abstractmethod
    def start(self, x: Tensor) -> Moved:
        """Where the first gradient is taken, x itself or other images."""

    @abstractmethod
    def step(self, z: Tensor, gradient: Tensor, loss: Tensor, broken: Tensor, t: int) -> Moved:
        """The next images."""


def climb(
    stepper: Stepper,
    objective: Objective,
    x: Tensor,
    steps: int,
    *,
    early_stop: bool = True,
    progress: bool = False,
    kind: Callable[[Tensor], Best] = Best,
) -> Best:
    """Climb the loss for `steps` gradients; images that are done leave the batch (see `LOOK`).

    The clean image counts: what is broken from the start takes no step. Where a stepper starts
    elsewhere, it is looked at apart, and all gradients are taken at images of the climb. With
    `early_stop` off (training) all images go on to the end. Another `kind` of best may want
    another image of each.

    Parameters
    ----------
    stepper : Stepper
        How the images follow the gradient, such as `Mirror`.
    objective : Objective
    x : Tensor (B, C, H, W)
        Clean images in [0, 1].
    steps : int
    early_stop, progress : bool
    kind : function of x
        Makes the `Best` that keeps what is found.

    Returns
    -------
    Best
        `x_adv`, `broken`, `cost`, `loss`, `steps`, one entry an image.

    Examples
    --------
    >>> from wotlab import WassersteinBall, attacks, data, models
    >>> model = models.load("digits-standard").double()
    >>> x, y = data.load("digits").tensors(slice(4))
    >>> goal = attacks.Objective(model, y, targeted=False, loss="ce")
    >>> mirror = attacks.Mirror(WassersteinBall(0.3), step_size=1.0)
    >>> best = attacks.climb(mirror, goal, x.double(), steps=20)
    >>> best.broken, best.steps
    (tensor([True, True, True, True]), tensor([1, 2, 3, 3]))
    """
    checks.count("steps", steps)
    best, index = kind(x), torch.arange(len(x), device=x.device)
    alive = torch.ones_like(index, dtype=torch.bool)
    at = Batch(index=index, alive=alive, nan=~alive, objective=objective, best=best, t=0)
    at.early_stop, at.stepper = early_stop, copy(stepper)  # what it learns goes when the climb ends
    at.z, at.spent = at.stepper.start(x)
    if elsewhere := at.z is not x:
        loss, best.misread = objective.value(x)
        go_on = best.offer(index, x, best.misread, torch.zeros_like(at.spent), loss, 0)
        at = at.select(go_on) if early_stop else at
    if len(at.index):
        learn(at)
    if not elsewhere:
        best.misread = at.broken
    move: Work = advance
    # another objective may draw numbers on its host, as EOT does: repeated they would be the same
    alone = stepper.alone and type(objective) is Objective
    if alone and steps > 2 and (known := stays(at, early_stop)):
        at, move = again(advance, at, known)
    for t in tqdm(range(steps), disable=not progress, leave=False):
        if t % LOOK.get(x.device.type, 1) == 0:
            no_answer(at.nan)
            gone = int((~at.alive).sum())
            if gone == len(at.index):
                break
            if gone > (0 if move is advance else max(FEW, len(at.index) // 4)):
                at, move = at.select(at.alive), advance
            if alone and move is advance and 0 < t < steps - WORTH:
                at, move = recorded(advance, at)
                alone = move is not advance
        if t < steps - 1:
            move(at)
    else:
        step(at)
        loss, broken = at.objective.value(at.z)
        at.best.offer(at.index, at.z, broken, at.spent, loss, at.t, at.alive)
        no_answer(at.nan)
    return at.best if move is advance else at.best.clone()  # another climb may take its memory


def learn(at: Batch) -> None:
    """The gradient where the images are, and who may go on."""
    at.gradient, at.loss, at.broken = at.objective.gradient(at.z)
    go_on = at.best.offer(at.index, at.z, at.broken, at.spent, at.loss, at.t, at.alive)
    at.alive, at.nan = at.alive & (go_on | (not at.early_stop)), at.nan | at.loss.isnan()


def step(at: Batch) -> None:
    """The next images."""
    at.z, at.spent = at.stepper.step(at.z, at.gradient, at.loss, at.broken, at.t)
    at.t = at.t + 1


def advance(at: Batch) -> None:
    """A step, and what is learned there; as it can be recorded."""
    step(at)
    learn(at)


# A run of an attack: called with an objective, images, early_stop and progress, as `climb` is
# with its stepper and steps bound
Run = Callable[..., Best]


def attack(
    runs: list[Run],
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    targeted: bool,
    loss: str,
    batch_size: int,
    early_stop: bool = True,
    progress: bool = False,
    exact: bool = False,
    objective: Kind = Objective,
    samples: int = 1,
) -> AttackResult:
    """Check what the user gave, climb part by part, judge.

    Runs after the first are for the images that still stand. `objective` is the kind of what is
    climbed. `exact` asks for the ball's distance, once and at the end, where the run has
    no cost of its own. `samples` are the results of each image. Images are float32 at least: a
    plan in half precision would lose more mass to rounding than the ball allows.
    """
    start = time.perf_counter()
    checks.count("batch_size", batch_size)
    checks.flags(targeted=targeted, early_stop=early_stop)
    with eval_mode(model) as passes:
        check(model, x, y)
        ball.check(x)
        parts = []
        for pair in zip(full_precision(x).split(batch_size), y.split(batch_size), strict=True):
            a, b = (each.repeat_interleave(samples, 0) for each in pair)
            climbed = objective_of(model, a, b, targeted, loss, objective)
            best = runs[0](climbed, a, early_stop=early_stop, progress=progress)
            for run in runs[1:]:
                left = (~best.broken).nonzero()[:, 0]
                if len(left):
                    more = run(climbed.select(left), a[left], early_stop=True, progress=progress)
                    won = more.broken.nonzero()[:, 0]
                    best.take(left[won], more, won)
            cost = ball.spent(a, best.x_adv) if exact else best.cost
            parts.append(judge(a, best, cost, ball))
    return join(parts, start, passes)


def climbing(stepper: Stepper, steps: int, kind: type[Best] = Best) -> Run:
    """The run that climbs for `steps` gradients."""
    return partial(climb, stepper, steps=steps, kind=kind)


def threat_model(ball: object) -> Ball:
    """The ball, if it is one."""
    wanted = "a threat model, such as LinfBall(0.1) or WassersteinBall(0.1)"
    return Ball.require(ball, wanted, found=repr(ball))


def on_plans(ball: object) -> WassersteinBall:
    """The ball, if it is one whose images are made by plans."""
    return WassersteinBall.require(ball, found=f"{type(ball).__name__}. For other balls use pgd")


def not_on_mass(ball: object) -> Ball:
    """The ball, unless it wants images that keep their mass."""
    if (found := threat_model(ball)).keeps_mass:
        raise ValueError(
            "ball must not be a WassersteinBall: a deformed image does not keep its mass. Take an "
            "InternalWassersteinBall, L2Ball or LinfBall"
        )
    return found
