"""Frank-Wolfe on the plan (Wu et al., 2020), called FWAdv elsewhere."""

import torch
from torch import Tensor, nn

from wotlab import checks
from wotlab.attacks.ascent import attack, on_plans
from wotlab.attacks.prices import plan_at
from wotlab.attacks.result import AttackResult
from wotlab.balls import WassersteinBall
from wotlab.moves import Moves, repair


class FrankWolfe:
    """Step towards the plan that is best for the gradient as it is now."""

    def __init__(self, ball: WassersteinBall, gamma: float = 1e-3, repaired: bool = True):
        self.ball, self.gamma, self.repaired = ball, gamma, repaired

    def start(self, x: Tensor) -> None:
        self.moves = Moves(x, self.ball.cost)
        self.shares = self.moves.still()
        self.budget = x.new_full((len(x),), self.ball.eps)
        self.phi, self.psi = torch.zeros_like(x), torch.ones_like(self.budget)

    def step(
        self, z: Tensor, gradient: Tensor, loss: Tensor, broken: Tensor, t: int
    ) -> tuple[Tensor, Tensor]:
        moves, share = self.moves, 2 / (t + 2)
        vertex = self.oracle(moves.read(self.ball.step(gradient, 1.0) / self.gamma), share)
        self.shares = (1 - share) * self.shares + share * vertex
        if self.repaired:
            self.shares, z = repair(moves, self.shares, self.budget)
        else:
            z = moves.send(self.shares)
        return z, moves.cost(self.shares)

    def oracle(self, scores: Tensor, share: float) -> Tensor:
        """The plan of cost eps that is best for the scores."""
        moves = self.moves
        scores = (scores - moves.read(self.phi)).masked_fill(moves.outside, -torch.inf)
        # as published, each search begins anew; else near the last step's price
        start = (2 * self.psi).clamp_min(1) if self.repaired else torch.ones_like(self.psi)
        low, high = bisected_prices(scores, moves, self.budget, start)
        self.psi = high
        vertex = plan_at(high, scores, moves)
        if not self.repaired:
            return vertex
        # at low entropy one pixel's change of mind can be worth more than the bisection's
        # tolerance: a mix of the plans on both sides spends the whole budget
        dearer = plan_at(low, scores, moves)
        spent, more = moves.cost(vertex), moves.cost(dearer)
        mix = ((self.budget - spent) / (more - spent).clamp_min(1e-30)).clamp(0, 1)[moves.owner]
        vertex = (1 - mix) * vertex + mix * dearer
        # a subgradient step of the price of full pixels, in the gradient's units
        over = moves.send(vertex) - 1
        self.phi = (self.phi + share / self.gamma * over).clamp_min(0)
        return vertex

    def select(self, keep: Tensor) -> None:
        self.moves, columns = self.moves.select(keep)
        self.shares = self.shares[:, columns]
        self.budget, self.phi, self.psi = self.budget[keep], self.phi[keep], self.psi[keep]


def bisected_prices(
    scores: Tensor, moves: Moves, eps: Tensor, start: Tensor, halvings: int = 50
) -> tuple[Tensor, Tensor]:
    """Prices psi on both sides of that where the plan costs eps, within 1e-4 as published."""

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
    gamma: float = 1e-3,
    repaired: bool = True,
    early_stop: bool = True,
    batch_size: int = 1000,
    progress: bool = False,
) -> AttackResult:
    r"""Maximise the loss over the plans of the ball by Frank-Wolfe steps.

    The oracle maximises <g, z> over the plans of the ball with entropy of weight `gamma`,
    q_i(d) ~ exp((g(i + d) - psi C(d)) / gamma), and the plan moves towards its answer,
    q <- (1 - s) q + s q_oracle with s = 2 / (t + 2) (Wu et al., 2020, section 5).

    Parameters
    ----------
    model, x, y, ball, targeted, loss, early_stop, batch_size, progress
        As for `mirror_ascent`.
    steps : int
        300 in the paper.
    gamma : float
        Entropy of the oracle, for g scaled to largest entry 1: 1e-3 in the paper.
    repaired : bool
        True: a price on full pixels, carried from step to step, teaches the oracle the pixel
        bound, and `wotlab.moves.repair` makes each iterate feasible. False: as published; the
        bound is ignored, pixels may exceed 1, and such images never count as successes.

    Returns
    -------
    AttackResult

    Raises
    ------
    ValueError
        As for `mirror_ascent`.
    """
    checks.positive("gamma", gamma)
    return attack(
        lambda: FrankWolfe(on_plans(ball), gamma, repaired),
        model, x, y, ball, targeted=targeted, loss=loss, steps=steps, batch_size=batch_size,
        early_stop=early_stop, progress=progress,
    )  # fmt: skip
