"""Step in pixels, project onto the ball: FGSM and PGD, with any ball and any projection."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from wotlab import checks, draws
from wotlab.attacks.ascent import Found, attack, retry
from wotlab.attacks.objective import Objective, objective_of
from wotlab.attacks.result import AttackResult
from wotlab.balls import InternalWassersteinBall, L2Ball, WassersteinBall
from wotlab.moves import Moves, repair
from wotlab.projections import Projection, constrained_sinkhorn

HU_STEP = 0.06  # of the image's mass (Hu et al., 2020, section 5)
INTERNAL_STEP = 0.2  # of brightness, for a ball that few pixels can use far
TRANSPORT = (WassersteinBall, InternalWassersteinBall)  # whose eps is no brightness
RULES = ("steepest", "sign", "low-pass")


def hu_step(x: Tensor, eps: float, share: float = HU_STEP) -> Tensor:
    """Step of Hu et al. (2020): `share` of each image's mass, eps / 2 of it where that is less."""
    return min(eps / 2, share) * x.sum((1, 2, 3), keepdim=True)


def quarter(x: Tensor, eps: float) -> float:
    """Step on the other balls."""
    return eps / 4


class Projected:
    """One step along the gradient, then back onto the ball."""

    def __init__(self, ball, rule, step_size, projection, schedule, repaired, start_at):
        self.ball, self.rule, self.step_size, self.projection = ball, rule, step_size, projection
        self.schedule, self.repaired, self.start_at = schedule, repaired, start_at

    def start(self, x: Tensor) -> None:
        self.x, self.warm = x, None
        if isinstance(self.ball, WassersteinBall):
            self.moves = Moves(x, self.ball.cost)

    def step(
        self, z: Tensor, gradient: Tensor, loss: Tensor, broken: Tensor, t: int
    ) -> tuple[Tensor, Tensor]:
        eps = self.ball.eps if self.schedule is None else self.schedule(t)
        ball = replace(self.ball, eps=eps)
        if t == 0 and self.start_at is not None:
            z = ball.project(self.x, self.start_at(self.x, eps))
        w = z + self.direction(ball, gradient) * self.size(eps)
        if not isinstance(ball, WassersteinBall):
            z = ball.project(self.x, w)
            return z, z.new_zeros(len(z))  # its distance: once, at the end
        done = self.projection(self.x, w, eps, ball.cost, warm=self.warm)
        self.warm = done.duals or None
        if not self.repaired:
            return done.image, done.plan.cost()
        shares, z = repair(self.moves, self.moves.shares(done.plan), eps)
        return z, self.moves.cost(shares)

    def direction(self, ball, gradient: Tensor) -> Tensor:
        if self.rule == "sign":
            return gradient.sign()
        if self.rule == "low-pass":
            gradient = gaussian_blur(gradient, [5, 5], [1.0, 1.0])
        return ball.step(gradient, 1.0)

    def size(self, eps: float) -> Tensor | float:
        if callable(self.step_size):
            return self.step_size(self.x, eps)
        return self.step_size

    def select(self, keep: Tensor) -> None:
        self.x = self.x[keep]
        if isinstance(self.ball, WassersteinBall):
            self.moves, _ = self.moves.select(keep)
        if self.warm:
            self.warm = {name: dual[keep] for name, dual in self.warm.items()}


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball,
    *,
    targeted: bool = False,
    loss: str = "ce",
    steps: int = 40,
    step_size: float | Callable[[Tensor, float], Tensor] | None = None,
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
    objective: Callable[..., Objective] = objective_of,
) -> AttackResult:
    r"""Projected gradient ascent, z <- P(z + step), on a ball of any kind.

    Parameters
    ----------
    model, x, y, targeted, loss, early_stop, batch_size, progress
        As for `mirror_ascent`.
    ball : LinfBall, L2Ball, WassersteinBall or InternalWassersteinBall
    steps : int
    step_size : float, or function of the clean images and eps, optional
        In units of brightness: the largest change of a pixel (for an L2Ball the length of the
        step). By default eps / 4, on a Wasserstein ball `hu_step`, min(eps / 2, 0.06) of the
        image's mass (Hu et al., 2020), and 0.2 on an internal one.
    rule : "steepest", "sign" or "low-pass"
        Steepest ascent of the ball: for a Wasserstein ball the gradient, scaled to its largest
        entry (Hu et al.); "sign" is the step of Wong et al. (2019), with step_size 0.1;
        "low-pass" blurs the gradient first (Hu et al., A.5; Gaussian of one pixel, 5 x 5).
    projection : function of (x, w, eps, cost, warm=...) that returns a `Projection` with a plan
        On a Wasserstein ball: one of `wotlab.projections`, options bound with functools.partial.
        Duals go from step to step.
    schedule : function of the step t, optional
        eps at that step, in place of the ball's; Hu et al. grow it by 0.01 a step, and count
        as an image's radius the eps at which it first breaks. ball.eps must be the largest.
    repaired : bool
        On a Wasserstein ball: make each iterate feasible by its plan (`wotlab.moves.repair`).
        False: as published; an image counts only if its exact distance is within ball.eps.
    random_start : bool
        Start from a projected image of noise: uniform in [-eps, eps] (l-infinity), Gaussian
        (l2, of length eps on average), Gaussian of deviation 0.1 (Wasserstein, internal). The
        first gradient is that of the clean image, which has been looked at anyway; the step along
        it starts at the noise.
    restarts : int >= 0
        Further runs, each from a new random start, on the images that still stand.
    generator : torch.Generator, optional
        Of that noise.
    objective : function of (model, x, y, targeted, loss)
        Makes what is climbed; `eot` puts its own here.

    Returns
    -------
    AttackResult

    Raises
    ------
    ValueError
        As for `mirror_ascent`; for an unknown rule; for restarts without a random start.
    """
    checks.count("restarts", restarts, zero=True)
    if restarts and not random_start:
        raise ValueError("restarts need random_start=True: from the same start all runs are one")
    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}; got {rule!r}")
    if step_size is None:
        steps_of = {WassersteinBall: hu_step, InternalWassersteinBall: INTERNAL_STEP}
        step_size = steps_of.get(type(ball), quarter)
    if not callable(step_size):
        checks.positive("step_size", step_size)

    def start_at(x: Tensor, eps: float) -> Tensor:
        if isinstance(ball, (L2Ball, *TRANSPORT)):
            size = 0.1 if isinstance(ball, TRANSPORT) else eps / x[0].numel() ** 0.5
            return x + size * draws.normal(x, generator)
        return x + eps * (2 * draws.uniform(x, generator) - 1)

    def make() -> Projected:
        start = start_at if random_start else None
        return Projected(ball, rule, step_size, projection, schedule, repaired, start)

    def again(objective: Objective, x: Tensor, found: Found) -> None:
        for _ in range(restarts):
            retry(make(), objective, x, steps, found, progress=progress)

    exact = not (isinstance(ball, WassersteinBall) and repaired)
    return attack(
        make,
        model, x, y, ball, targeted=targeted, loss=loss, steps=steps, batch_size=batch_size,
        early_stop=early_stop, progress=progress, again=again,
        exact=exact, objective=objective,
    )  # fmt: skip


def fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball,
    *,
    targeted: bool = False,
    loss: str = "ce",
    batch_size: int = 1000,
) -> AttackResult:
    """One steepest step, as long as the ball is wide, projected (Goodfellow et al., 2015).

    Parameters, result and errors as for `pgd`. On a Wasserstein or internal ball the step is that
    of `pgd`. Weak: a check of a network, not a measure of its robustness.
    """
    size = None if isinstance(ball, TRANSPORT) else max(ball.eps, 1e-30)
    return pgd(
        model, x, y, ball, targeted=targeted, loss=loss, steps=1, step_size=size,
        batch_size=batch_size,
    )  # fmt: skip
