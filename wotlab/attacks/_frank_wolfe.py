"""Frank-Wolfe on the plan (Wu et al., 2020), called FWAdv elsewhere."""

from copy import copy
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from wotlab._base import checks
from wotlab.attacks._loop import Moved, Stepper, attack, climbing, on_plans
from wotlab.attacks._result import AttackResult, Last
from wotlab.balls import WassersteinBall
from wotlab.plans import Moves, repair
from wotlab.projections import dual_projection

REPAIR = 5000  # steps of the final projection (Wu et al., 2020)


@dataclass(eq=False)
class FrankWolfe(Stepper):
    """Step towards the plan that is best for the gradient as it is now."""

    ball: WassersteinBall
    reg: float

    def start(self, x: Tensor) -> Moved:
        self.moves = Moves(x, self.ball.ground_cost)
        self.shares = self.moves.identity()
        self.budget = x.new_full((len(x),), self.ball.eps)
        self.phi, self.psi = torch.zeros_like(x), torch.ones_like(self.budget)
        return x, torch.zeros_like(self.budget)

    def select(self, keep: Tensor) -> Self:
        rest = copy(self)
        del rest.shares  # its rows are steps, not images
        some = super(FrankWolfe, rest).select(keep)
        some.shares = self.shares[:, keep[self.moves.image_index]]
        return some

    def step(self, z: Tensor, gradient: Tensor, loss: Tensor, broken: Tensor, t: int) -> Moved:
        self.follow(gradient, t)
        self.shares, z = repair(self.moves, self.shares, self.budget)
        return z, self.moves.cost(self.shares)

    def follow(self, gradient: Tensor, t: int) -> None:
        """Move the plan a share 2 / (t + 2) of the way to the oracle's."""
        share = 2 / (t + 2)
        vertex = self.oracle(self.moves.gather(self.ball.step(gradient, 1.0) / self.reg), share)
        self.shares = (1 - share) * self.shares + share * vertex

    def oracle(self, scores: Tensor, share: float) -> Tensor:
        """The plan of cost eps that is best for the scores, with the multipliers of full pixels."""
        moves = self.moves
        scores = (scores - moves.gather(self.phi)).masked_fill(moves.outside, -torch.inf)
        low, high = bisected_multipliers(scores, moves, self.budget, (2 * self.psi).clamp_min(1))
        self.psi = high
        # at low entropy one pixel's change of mind can be worth more than the bisection's
        # tolerance: a mix of the plans on both sides spends the whole budget
        vertex, dearer = plan_at(high, scores, moves), plan_at(low, scores, moves)
        spent, more = moves.cost(vertex), moves.cost(dearer)
        mix = ((self.budget - spent) / (more - spent).clamp_min(1e-30)).clamp(0, 1)[
            moves.image_index
        ]
        vertex = (1 - mix) * vertex + mix * dearer
        # a subgradient step of the multiplier of full pixels, in the gradient's units
        over = moves.push_forward(vertex) - 1
        self.phi = (self.phi + share / self.reg * over).clamp_min(0)
        return vertex


@dataclass(eq=False)
class Published(FrankWolfe):
    """As Wu et al. run it: no pixel bound on the way, one projection of the plan at the end."""

    steps: int

    def step(self, z: Tensor, gradient: Tensor, loss: Tensor, broken: Tensor, t: int) -> Moved:
        moves = self.moves
        # the network sees the plan's image clamped, and no slope passes where the clamp holds
        self.follow(torch.where(moves.push_forward(self.shares) > 1, 0, gradient), t)
        if t < self.steps - 1:
            return moves.push_forward(self.shares).clamp(0, 1), moves.cost(self.shares)
        done = dual_projection(
            moves.x, moves.plan(self.shares), self.ball.eps, self.ball.ground_cost, max_iter=REPAIR
        )
        return done.image.clamp(0, 1), done.plan.cost()

    def oracle(self, scores: Tensor, share: float) -> Tensor:
        """The plan that is best for the scores, from a bisection that begins anew each time."""
        scores = scores.masked_fill(self.moves.outside, -torch.inf)
        _, psi = bisected_multipliers(scores, self.moves, self.budget, torch.ones_like(self.psi))
        return plan_at(psi, scores, self.moves)


def plan_at(psi: Tensor, scores: Tensor, moves: Moves) -> Tensor:
    """Shares (K, N) proportional to exp(scores - psi C)."""
    return torch.softmax(scores - psi[moves.image_index] * moves.costs, 0)


def bisected_multipliers(
    scores: Tensor, moves: Moves, eps: Tensor, start: Tensor, halvings: int = 50
) -> tuple[Tensor, Tensor]:
    """Multipliers psi on both sides of that where the plan costs eps, within 1e-4 as published."""

    def over(psi: Tensor) -> Tensor:
        return moves.cost(plan_at(psi, scores, moves)) > eps

    low, high = torch.zeros_like(eps), start
    while bool((cheap := over(high)).any()) and float(high.max()) < 1e12:
        low, high = torch.where(cheap, high, low), torch.where(cheap, 2 * high, high)
    for _ in range(halvings):
        wide = high - low > 1e-4 * high
        if not bool(wide.any()):
            break
        middle = (low + high) / 2
        cheap = over(middle)
        low = torch.where(wide & cheap, middle, low)
        high = torch.where(wide & ~cheap, middle, high)
    return low, high


def frank_wolfe(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball: WassersteinBall,
    *,
    targeted: bool = False,
    loss: str = "ce",
    steps: int = 300,
    reg: float = 1e-3,
    published: bool = False,
    early_stop: bool = True,
    batch_size: int = 1000,
    progress: bool = False,
) -> AttackResult:
    r"""Maximise the loss over the plans of the ball by Frank-Wolfe steps.

    The oracle maximises :math:`\langle g, z\rangle` over the plans of the ball with entropy of
    weight `reg`, and the plan moves towards its answer (Wu et al., 2020, section 5):

    .. math::
        & \hat q_i(d) \propto e^{(g(i + d) - \psi\, C(d)) / \mathtt{reg}}, \\
        & q \leftarrow (1 - s)\, q + s\, \hat q, \quad s = \frac{2}{t + 2}

    Parameters
    ----------
    model, x, y, ball, targeted, loss, early_stop, batch_size, progress
        As for `mirror_ascent`.
    steps : int
        300 in the paper.
    reg : float
        Entropy of the oracle, for g scaled to largest entry 1: 1e-3 in the paper.
    published : bool
        False: a multiplier of full pixels, carried from step to step, teaches the oracle the pixel
        bound, and `wotlab.plans.repair` makes each iterate feasible, so that an image is done as
        soon as it breaks. True, as its authors run it: pixels may exceed 1 on the way, where the
        network sees them clamped; after the last step one `dual_projection` of the plan with the
        pixel bound (at most 5,000 steps) makes it feasible, and only that last image counts.
        `early_stop` then has no effect.

    Returns
    -------
    AttackResult

    Raises
    ------
    ValueError
        As for `mirror_ascent`.

    Examples
    --------
    >>> from wotlab import WassersteinBall, attacks, data, models
    >>> model = models.load("digits-standard").double()
    >>> x, y = data.load("digits").tensors(slice(20))
    >>> ball = WassersteinBall(0.1)
    >>> done = attacks.frank_wolfe(model, x.double(), y, ball, steps=50)
    >>> int(done.success.sum()), bool((done.cost <= 0.1 + 1e-12).all())
    (15, True)
    """
    ball = on_plans(ball)
    checks.positive("reg", reg)
    checks.flags(published=published)
    if published:
        early_stop, run = False, climbing(Published(ball, reg, steps), steps, kind=Last)
    else:
        run = climbing(FrankWolfe(ball, reg), steps)
    return attack(
        [run], model, x, y, ball, targeted=targeted, loss=loss, batch_size=batch_size,
        early_stop=early_stop, progress=progress,
    )  # fmt: skip
