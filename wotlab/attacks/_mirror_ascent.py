"""Mirror ascent: a potential adds up gradients, and the plan follows it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wotlab._base import checks, draws
from wotlab.attacks._loop import Moved, Stepper, attack, climbing, on_plans
from wotlab.attacks._result import AttackResult
from wotlab.balls import WassersteinBall
from wotlab.plans import PotentialPlans

SWEEPS = 1  # of the multipliers a step; two break 1 image of 100 more in a fifth more time


@dataclass(eq=False)
class Mirror(Stepper):
    """Dual averaging: a potential adds up the gradients; multipliers make a feasible plan of it.

    Parameters
    ----------
    ball : WassersteinBall
    step_size, momentum : float
        As for `mirror_ascent`.
    forget : float in [0, 1)
        Share of the potential that goes each step. 0 is dual averaging; where the budget changes,
        what was learned at another one misleads.
    noise : float
        Deviation of the Gaussian potential that it starts from, in units of the step.
    generator : torch.Generator, optional
        Of that noise.

    Examples
    --------
    >>> from wotlab import WassersteinBall, attacks, data
    >>> x, _ = data.load("digits").tensors(slice(2))
    >>> mirror = attacks.Mirror(WassersteinBall(0.3), step_size=1.0)
    >>> z, spent = mirror.start(x.double())
    >>> bool((z == x).all()), spent
    (True, tensor([0., 0.], dtype=torch.float64))
    """

    ball: WassersteinBall
    step_size: float
    momentum: float = 0.0
    forget: float = 0.0
    noise: float = 0.0
    generator: torch.Generator | None = None
    alone = True

    def __post_init__(self) -> None:
        checks.positive("step_size", self.step_size)
        checks.share("momentum", self.momentum, one=False)

    def start(self, x: Tensor) -> Moved:
        self.plans = PotentialPlans(x, self.ball.ground_cost)
        # a kernel works in the images' own precision
        still = torch.zeros_like(x if self.plans.fused else self.plans.x)
        self.G = self.noise * draws.normal(still, self.generator) if self.noise else still
        self.budget = still.new_full((len(x),), self.ball.eps)
        self.velocity, self.phi, self.psi = still, still, torch.ones_like(self.budget)
        self.last = self.phi, self.psi
        return x, x.new_zeros(len(x))

    def step(self, z: Tensor, gradient: Tensor, loss: Tensor, broken: Tensor, t: int) -> Moved:
        self.velocity = self.momentum * self.velocity + self.ball.step(gradient, 1.0)
        self.G = (1 - self.forget) * self.G + self.step_size * self.velocity
        # the potential grows from step to step, the multipliers in proportion: go on as they went
        now = self.phi, self.psi
        phi, psi = ((2 * new - old).clamp_min(0) for new, old in zip(now, self.last, strict=True))
        phi, psi, image, cost = self.plans.step(self.G, phi, psi, self.budget, SWEEPS)
        self.phi, self.psi, self.last = phi, psi, now
        return image.to(z.dtype), cost.to(z.dtype)


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

    With q_i(j) the share of pixel i's mass that moves to j, the gradient with respect to the plan
    is the image gradient g read where the mass arrives, the same for all that arrive there. Each
    step adds it, scaled to largest entry 1, to a potential on the pixels (dual averaging), and
    takes the plan of this potential:

    .. math::
        & G \leftarrow G + \mathtt{step\_size}\, \frac{g}{\max_j \lvert g_j\rvert}, \\
        & q_i(j) \propto \exp(G_j - \phi_j - \psi\, C_{ij})

    The multipliers psi and phi keep it within the budget and its image in [0, 1]
    (`wotlab.plans.PotentialPlans`). Each iterate is made exactly feasible, so every gradient is
    taken inside the ball.

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
        In units of the potential; 1 by default (0.3 to 3 do nearly as well on MNIST).
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

    Examples
    --------
    >>> from wotlab import WassersteinBall, attacks, data, models
    >>> model = models.load("digits-standard").double()
    >>> x, y = data.load("digits").tensors(slice(20))
    >>> ball = WassersteinBall(0.1)
    >>> done = attacks.mirror_ascent(model, x.double(), y, ball, steps=50)
    >>> int(done.success.sum()), bool((done.cost <= 0.1 + 1e-12).all())
    (16, True)
    """
    ball = on_plans(ball)
    run = climbing(Mirror(ball, step_size, momentum), steps)
    return attack(
        [run], model, x, y, ball, targeted=targeted, loss=loss,
        batch_size=batch_size, early_stop=early_stop, progress=progress,
    )  # fmt: skip
