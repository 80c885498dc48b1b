"""stAdv: images bent by a smooth flow (Xiao et al., 2018)."""

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Adam

from wotlab._base import checks
from wotlab.attacks._adam_rows import keep_rows
from wotlab.attacks._loop import Moved, Stepper, attack, climbing, not_on_mass
from wotlab.attacks._objective import Objective
from wotlab.attacks._result import AttackResult, Best
from wotlab.balls import Ball
from wotlab.transformations import roughness, warp

OPTIMIZERS = ("lbfgs", "adam")


@dataclass(eq=False)
class Bend(Stepper):
    """One flow an image, which Adam moves up the loss and towards smoothness."""

    tau: float
    lr: float

    def start(self, x: Tensor) -> Moved:
        self.x = x
        self.flow = nn.Parameter(x.new_zeros(len(x), 2, *x.shape[-2:]))
        self.adam = Adam([self.flow], self.lr)
        return x, x.new_zeros(len(x))

    def step(self, z: Tensor, gradient: Tensor, loss: Tensor, broken: Tensor, t: int) -> Moved:
        with torch.enable_grad():
            bent = warp(self.x, self.flow)
            value = self.tau * roughness(self.flow).sum() - (bent * gradient).sum()
            (self.flow.grad,) = torch.autograd.grad(value, self.flow)
        self.adam.step()
        z = warp(self.x, self.flow.detach()).clamp(0, 1)  # bilinear weights round
        return z, torch.zeros_like(loss)  # its distance: once, at the end

    def select(self, keep: Tensor) -> Self:
        self.x = self.x[keep]
        keep_rows(self.adam, keep)
        return self


class _Broken(Exception):
    """The image at hand is broken, and its search over."""


def value(objective: Objective, x: Tensor, flow: Tensor, tau: float) -> tuple[Tensor, ...]:
    """The bent images, max(-loss, 0) + tau roughness, which the paper minimises, and broken."""
    z = warp(x, flow).clamp(0, 1)
    loss, broken = objective.value(z)
    return z, (-loss).clamp_min(0) + tau * roughness(flow), broken


def search(
    objective: Objective, x: Tensor, tau: float, steps: int, early_stop: bool, progress: bool
) -> Best:
    """L-BFGS on the flow of one image after the other; of what breaks the least value is kept."""
    from scipy.optimize import minimize

    best, looks = Best(x), 0
    _, best.misread = objective.value(x)

    def look(
        flat: np.ndarray, row: Tensor, one: Objective, image: Tensor
    ) -> tuple[float, np.ndarray]:
        nonlocal looks
        with torch.enable_grad():
            flow = torch.from_numpy(flat).to(image).view(1, 2, *image.shape[-2:])
            z, total, broken = value(one, image, flow.requires_grad_(), tau)
            (slope,) = torch.autograd.grad(total.sum(), flow)
        total = total.detach()
        best.offer(row, z.detach(), broken, torch.zeros_like(total), -total, looks)
        looks += 1
        if early_stop and bool(broken):
            raise _Broken
        return float(total), slope.double().flatten().cpu().numpy()

    start, options = np.zeros(2 * x[0, 0].numel()), {"maxiter": steps}
    for row in torch.arange(len(x), device=x.device).split(1):
        looks, args = 0, (row, objective.select(row), x[row])
        with suppress(_Broken):
            minimize(look, start, args, jac=True, method="L-BFGS-B", options=options)
    return best


def stadv(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    targeted: bool = False,
    loss: str = "margin",
    optimizer: str = "lbfgs",
    steps: int = 200,
    tau: float = 0.05,
    lr: float = 0.05,
    early_stop: bool = True,
    batch_size: int = 1000,
    progress: bool = False,
) -> AttackResult:
    r"""Bend the image by a smooth flow until it breaks: stAdv (Xiao et al., 2018).

    .. math:: \min_f\ \max(-\mathrm{loss}(\mathrm{model}(\mathrm{warp}(x, f)), y),\, 0)
        + \tau\ \mathrm{roughness}(f)

    Parameters
    ----------
    model, x, y, targeted, loss, batch_size, progress
        As for `mirror_ascent`.
    ball : any ball but a WassersteinBall
        stAdv has no budget. The ball's distance is the result's `cost`, and an image counts if
        it lies inside; a large eps lets all count. A bent image does not keep its mass.
    optimizer : "lbfgs" or "adam"
        "lbfgs", as in the paper: SciPy's L-BFGS-B, image by image. "adam" moves all flows of a
        batch at once, and goes on to climb the loss of images that are broken already: faster on
        a GPU, and rougher flows.
    steps : int
        Iterations of L-BFGS at most, or steps of Adam.
    tau : float >= 0
        Weight of `wotlab.transformations.roughness`, 0.05 in the paper.
    lr : float > 0
        Of Adam, in pixels.
    early_stop : bool
        An image is done as soon as it breaks. Off, L-BFGS goes on to the smoothest flow that
        breaks it, as in the paper.

    Returns
    -------
    AttackResult
        With L-BFGS, `steps` counts the evaluations of the network.

    Raises
    ------
    ValueError
        As for `mirror_ascent`; for a WassersteinBall, tau < 0, lr <= 0, another optimizer.

    Examples
    --------
    >>> from wotlab import LinfBall, attacks, data, models
    >>> model = models.load("digits-standard").double()
    >>> x, y = data.load("digits").tensors(slice(4))
    >>> done = attacks.stadv(model, x.double(), y, LinfBall(1.0))  # a ball that holds all
    >>> done.success
    tensor([True, True, True, True])
    """
    checks.positive("tau", tau, zero=True)
    checks.positive("lr", lr)
    checks.count("steps", steps)
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}; got {optimizer!r}")

    if optimizer == "adam":
        run = climbing(Bend(tau, lr), steps)
    else:
        run = partial(search, tau=tau, steps=steps)
    return attack(
        [run], model, x, y, not_on_mass(ball), targeted=targeted, loss=loss,
        batch_size=batch_size, early_stop=early_stop, progress=progress, exact=True,
    )  # fmt: skip
