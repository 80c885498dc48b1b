"""Mirror ascent: the plan follows the gradient multiplicatively; multipliers keep it legal."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wotlab._base import checks, draws
from wotlab.attacks._loop import Moved, PlanStepper, attack, climbing, on_plans
from wotlab.attacks._multipliers import softmax_plan
from wotlab.attacks._result import AttackResult
from wotlab.balls import WassersteinBall
from wotlab.plans import repair


@dataclass(eq=False)
class Mirror(PlanStepper):
    """Dual averaging: scores add up the gradients, multipliers make a feasible plan of them."""

    step_size: float
    momentum: float = 0.0
    sweeps: int = 2
    noise: float = 0.0
    generator: torch.Generator | None = None

    columns = ("scores",)

    def __post_init__(self) -> None:
        checks.positive("step_size", self.step_size)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1); got {self.momentum!r}")

    def start(self, x: Tensor) -> Moved:
        begin = super().start(x)
        self.scores = torch.zeros_like(self.moves.outside, dtype=x.dtype)
        if self.noise:
            self.scores += self.noise * draws.normal(self.scores, self.generator)
        self.scores.masked_fill_(self.moves.outside, -torch.inf)
        self.psi = torch.ones_like(self.budget)
        self.phi, self.velocity = torch.zeros_like(x), torch.zeros_like(x)
        self.last_psi, self.last_phi = self.psi, self.phi
        return begin

    def step(self, z: Tensor, gradient: Tensor, loss: Tensor, broken: Tensor, t: int) -> Moved:
        self.velocity = self.momentum * self.velocity + self.ball.step(gradient, 1.0)
        self.scores += self.step_size * self.moves.gather(self.velocity)
        # scores grow from step to step, and the multipliers in proportion: go on as they went
        psi, phi = 2 * self.psi - self.last_psi, (2 * self.phi - self.last_phi).clamp_min(0)
        self.last_psi, self.last_phi = self.psi, self.phi
        budget = self.budget.clamp_min(1e-12)
        shares, self.psi, self.phi = softmax_plan(
            self.scores, self.moves, budget, psi.clamp_min(0), phi, self.sweeps
        )
        shares, z = repair(self.moves, shares, self.budget)
        return z, self.moves.cost(shares)


def mirror_ascent(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball: WassersteinBall,
    *,
    targeted: bool = False,
    loss: str = "ce",
    steps: int = 100,
    step_size: float = 1.0,
    momentum: float = 0.0,
    early_stop: bool = True,
    batch_size: int = 1000,
    progress: bool = False,
) -> AttackResult:
    r"""Maximise the loss over the plans of the ball by entropic mirror ascent.

    With q_i(d) the share of pixel i's mass that moves by d, the gradient with respect to the
    plan is the image gradient g read where the mass arrives. Each step adds it to the scores,
    L_i(d) += step_size * g(i + d) with g scaled to largest entry 1 (dual averaging), and takes
    the plan q_i(d) ~ exp(L_i(d) - psi C(d) - phi(i + d)), whose multipliers psi and phi keep it
    within the budget and its image in [0, 1]. `wotlab.plans.repair` makes each iterate exactly
    feasible, so every gradient is taken inside the ball.

    Parameters
    ----------
    model : nn.Module
        Images in [0, 1] to logits (B, classes). Run in eval mode, left as it was found.
    x : Tensor (B, C, H, W)
        Images in [0, 1], of any float dtype; attacked in float32 or float64, whatever the dtype
        of the model's weights. A black image has no mass to move and comes back as it is.
    y : Tensor (B,), int64
        Labels; with `targeted` the classes to reach.
    ball : WassersteinBall
        Budget in pixels of distance; its cost's window limits the moves.
    targeted : bool
    loss : "ce", "margin" or "kl"
    steps : int
        Gradients.
    step_size : float
        In units of the score; 1 by default (0.3 to 3 do nearly as well on MNIST).
    momentum : float in [0, 1)
    early_stop : bool
        Images that are broken leave the batch. Off, they go on to the largest loss.
    batch_size : int
        Images at a time: bounds memory, changes nothing else.
    progress : bool

    Returns
    -------
    AttackResult

    Raises
    ------
    ValueError
        For bad images, labels or numbers, or a model that returns NaN or probabilities.
    """
    ball = on_plans(ball)
    stage = climbing(Mirror(ball, step_size, momentum), steps)
    return attack(
        [stage], model, x, y, ball, targeted=targeted, loss=loss,
        batch_size=batch_size, early_stop=early_stop, progress=progress,
    )  # fmt: skip
