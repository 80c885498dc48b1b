"""stAdv: images bent by a smooth flow (Xiao et al., 2018)."""

import torch
from torch import Tensor, nn
from torch.optim import Adam

from wotlab import checks
from wotlab.attacks.ascent import attack, not_on_mass
from wotlab.attacks.result import AttackResult
from wotlab.attacks.rows import keep_rows
from wotlab.warps import roughness, warp


class Bend:
    """One flow an image, which Adam moves up the loss and towards smoothness."""

    def __init__(self, tau: float, rate: float):
        self.tau, self.rate = tau, rate

    def start(self, x: Tensor) -> None:
        self.x = x
        self.flow = nn.Parameter(x.new_zeros(len(x), 2, *x.shape[-2:]))
        self.adam = Adam([self.flow], self.rate)

    def step(
        self, z: Tensor, gradient: Tensor, loss: Tensor, broken: Tensor, t: int
    ) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            bent = warp(self.x, self.flow)
            value = self.tau * roughness(self.flow).sum() - (bent * gradient).sum()
            (self.flow.grad,) = torch.autograd.grad(value, self.flow)
        self.adam.step()
        z = warp(self.x, self.flow.detach()).clamp(0, 1)  # bilinear weights round
        return z, torch.zeros_like(loss)  # its distance: once, at the end

    def select(self, keep: Tensor) -> None:
        self.x = self.x[keep]
        keep_rows(self.adam, keep)


def stadv(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball,
    *,
    targeted: bool = False,
    loss: str = "margin",
    steps: int = 200,
    tau: float = 0.05,
    rate: float = 0.05,
    early_stop: bool = True,
    batch_size: int = 1000,
    progress: bool = False,
) -> AttackResult:
    r"""max_flow loss(model(warp(x, flow)), y) - tau roughness(flow): stAdv.

    Parameters
    ----------
    model, x, y, targeted, loss, early_stop, batch_size, progress
        As for `mirror_ascent`.
    ball : any ball but a WassersteinBall
        stAdv has no budget. The ball's distance is the result's `cost`, and an image counts if
        it lies inside; a large eps lets all count. A bent image does not keep its mass.
    steps : int
        Of Adam; the paper uses L-BFGS, which cannot drop the images of a batch that are done.
    tau : float >= 0
        Weight of `wotlab.warps.roughness`, 0.05 in the paper.
    rate : float > 0
        Of Adam, in pixels.

    Returns
    -------
    AttackResult

    Raises
    ------
    ValueError
        As for `mirror_ascent`; for a WassersteinBall, tau < 0, rate <= 0.
    """
    checks.positive("tau", tau, zero=True)
    checks.positive("rate", rate)
    return attack(
        lambda: Bend(tau, rate),
        model, x, y, not_on_mass(ball), targeted=targeted, loss=loss, steps=steps,
        batch_size=batch_size, early_stop=early_stop, progress=progress, exact=True,
    )  # fmt: skip
