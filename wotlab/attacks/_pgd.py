"""Step in pixels, project onto the ball: FGSM and PGD, with any ball and any projection."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from wotlab._base import checks, draws
from wotlab.attacks._loop import Moved, Stepper, attack, climbing, on_plans, threat_model
from wotlab.attacks._objective import Objective
from wotlab.attacks._result import AttackResult
from wotlab.balls import Ball, WassersteinBall
from wotlab.plans import Moves, repair
from wotlab.projections import Projection, constrained_sinkhorn

RULES = ("steepest", "sign", "low-pass")
StepSize = float | Callable[[Tensor, float], Tensor | float]


@dataclass(eq=False)
class Projected(Stepper):
    """One step along the gradient, then back onto the ball."""

    ball: Ball
    rule: str
    step_size: StepSize | None
    schedule: Callable[[int], float] | None
    random_start: bool
    generator: torch.Generator | None

    def __post_init__(self) -> None:
        self.alone = self.ball.closed and self.schedule is None and self.rule != "low-pass"

    def start(self, x: Tensor) -> Moved:
        self.x = x
        if not self.random_start:
            return x, x.new_zeros(len(x))
        ball = self.at(0)
        return self.onto(ball, x + ball.noise(x, self.generator))

    def step(self, z: Tensor, gradient: Tensor, loss: Tensor, broken: Tensor, t: int) -> Moved:
        ball = self.at(t)
        if self.rule == "low-pass":
            from torchvision.transforms.functional import gaussian_blur

            gradient = gaussian_blur(gradient, [5, 5], [1.0, 1.0])
        along = gradient.sign() if self.rule == "sign" else ball.step(gradient, 1.0)
        return self.onto(ball, z + along * self.size(ball))

    def at(self, t: int) -> Ball:
        """The ball of step t."""
        return self.ball if self.schedule is None else replace(self.ball, eps=self.schedule(t))

    def size(self, ball: Ball) -> Tensor | float:
        if self.step_size is None:
            return ball.default_step(self.x)
        return self.step_size(self.x, ball.eps) if callable(self.step_size) else self.step_size

    def onto(self, ball: Ball, w: Tensor) -> Moved:
        """Images of the ball near w, and what they spend."""
        z = ball.project(self.x, w)
        return z, z.new_zeros(len(z))  # its distance: once, at the end


@dataclass(eq=False)
class ProjectedPlans(Projected):
    """The same where a projection makes plans of the images."""

    ball: WassersteinBall
    projection: Callable[..., Projection]
    repaired: bool

    def start(self, x: Tensor) -> Moved:
        known = inspect.signature(self.projection).parameters
        every = any(p.kind is p.VAR_KEYWORD for p in known.values())
        self.takes = [name for name in ("eps", "warm") if every or name in known]
        self.moves = Moves(x, self.ball.ground_cost)
        self.warm: dict[str, Tensor] | None = None
        return super().start(x)

    def onto(self, ball: Ball, w: Tensor) -> Moved:
        given = {"eps": ball.eps, "warm": self.warm}
        options = {name: given[name] for name in self.takes}
        done = self.projection(self.x, w, ground_cost=self.ball.ground_cost, **options)
        self.warm = done.duals or None
        if not self.repaired:
            return done.image, done.plan.cost()
        shares, z = repair(self.moves, self.moves.shares(done.plan), ball.eps)
        return z, self.moves.cost(shares)


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    targeted: bool = False,
    loss: str = "ce",
    steps: int = 40,
    step_size: StepSize | None = None,
    rule: str = "steepest",
    projection: Callable[..., Projection] = constrained_sinkhorn,
    schedule: Callable[[int], float] | None = None,
    repaired: bool = True,
    random_start: bool = False,
    restarts: int = 0,
    early_stop: bool = True,
    batch_size: int = 1000,
    generator: torch.Generator | None = None,
    progress: bool = False,
    objective: Callable[..., Objective] = Objective,
) -> AttackResult:
    r"""Projected gradient ascent on a ball of any kind.

    .. math:: z \leftarrow P_{B_\varepsilon(x)}(z + \mathrm{step}(\nabla_z\, \ell(z, y)))

    Parameters
    ----------
    model, x, y, targeted, loss, early_stop, batch_size, progress
        As for `mirror_ascent`.
    ball : LinfBall, L2Ball, WassersteinBall or InternalWassersteinBall
    steps : int
    step_size : float, or function of the clean images and eps, optional
        In units of brightness: the largest change of a pixel (for an L2Ball the length of the
        step). By default eps / 4, on a Wasserstein ball `hu_step`, min(eps / 2, 0.06) of the
        image's mass (Hu et al., 2020), and 0.2 on an internal one. A function is asked once for
        steps that a GPU records: it may depend on nothing else.
    rule : "steepest", "sign" or "low-pass"
        Steepest ascent of the ball: for a Wasserstein ball the gradient, scaled to its largest
        entry (Hu et al.); "sign" is the step of Wong et al. (2019), with step_size 0.1;
        "low-pass" blurs the gradient first (Hu et al., A.5; Gaussian of one pixel, 5 x 5).
    projection : function of (x, w, ground_cost) that returns a `Projection` with a plan
        On a Wasserstein ball: any of `wotlab.projections`, options bound with functools.partial.
        One that has an argument `eps` is given the budget, and one that has `warm` the duals of
        the last step.
    schedule : function of the step t, optional
        eps at that step, in place of the ball's; Hu et al. grow it by 0.01 a step, and count
        as an image's radius the eps at which it first breaks. ball.eps must be the largest.
    repaired : bool
        On a Wasserstein ball: make each iterate feasible by its plan (`wotlab.plans.repair`).
        False: as published; an image counts only if its exact distance is within ball.eps.
    random_start : bool
        Start from a projected image of noise: uniform in [-eps, eps] (l-infinity), Gaussian
        (l2, of length eps on average), Gaussian of deviation 0.1 (Wasserstein, internal). All
        gradients, the first one too, are taken there and after; the clean image is looked at
        once, and counts.
    restarts : int >= 0
        Further runs, each from a new random start, on the images that still stand.
    generator : torch.Generator, optional
        Of that noise.
    objective : function of (model, y, targeted, loss, clean)
        Makes the `Objective` that is climbed; `eot` puts its own here.

    Returns
    -------
    AttackResult

    Raises
    ------
    ValueError
        As for `mirror_ascent`; for an unknown rule; for restarts without a random start.

    Examples
    --------
    >>> from wotlab import LinfBall, WassersteinBall, attacks, data, models
    >>> model = models.load("digits-standard").double()
    >>> x, y = data.load("digits").tensors(slice(10))
    >>> balls = LinfBall(0.1), WassersteinBall(0.1)
    >>> [int(attacks.pgd(model, x.double(), y, ball).success.sum()) for ball in balls]
    [3, 9]
    """
    checks.count("restarts", restarts, zero=True)
    checks.flags(repaired=repaired, random_start=random_start)
    checks.function("projection", projection, "wotlab.projections.constrained_sinkhorn")
    if not callable(objective):
        raise ValueError(f"objective must make an Objective; got {checks.found(objective)}")
    draws.check(generator)
    if schedule is not None:
        checks.function("schedule", schedule, "lambda t: 0.01 * (t + 1)")
    if restarts and not random_start:
        raise ValueError("restarts need random_start=True: from the same start all runs are one")
    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}; got {rule!r}")
    if step_size is not None and not callable(step_size):
        checks.positive("step_size", step_size)

    how = rule, step_size, schedule, random_start, generator
    stepper = Projected(threat_model(ball), *how)
    if ball.keeps_mass:
        stepper = ProjectedPlans(on_plans(ball), *how, projection, repaired)
    return attack(
        [climbing(stepper, steps)] * (1 + restarts), model, x, y, ball, targeted=targeted,
        loss=loss, batch_size=batch_size, early_stop=early_stop, progress=progress,
        exact=not (ball.keeps_mass and repaired), objective=objective,
    )  # fmt: skip


def fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    targeted: bool = False,
    loss: str = "ce",
    batch_size: int = 1000,
) -> AttackResult:
    """One steepest step, as long as the ball is wide, projected (Goodfellow et al., 2015).

    On a Wasserstein or internal ball the step is that of `pgd`. Weak: a check of a network, not a
    measure of its robustness. Result and errors as for `pgd`.

    Parameters
    ----------
    model, x, y, ball, targeted, loss, batch_size
        As for `pgd`.

    Examples
    --------
    >>> from wotlab import LinfBall, attacks, data, models
    >>> model = models.load("digits-standard").double()
    >>> x, y = data.load("digits").tensors(slice(20))
    >>> done = attacks.fgsm(model, x.double(), y, LinfBall(0.1))
    >>> int(done.success.sum()), done.steps.unique()
    (8, tensor([1]))
    """
    return pgd(
        model, x, y, ball, targeted=targeted, loss=loss, steps=1, batch_size=batch_size,
        step_size=lambda x, eps: ball.longest_step(x),
    )  # fmt: skip
