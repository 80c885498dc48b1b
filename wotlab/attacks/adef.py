"""ADef: a small deformation that changes the answer, step by step (Alaifari et al., 2019)."""

import math

import torch
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from wotlab import checks
from wotlab.attacks.ascent import attack, not_on_mass
from wotlab.attacks.result import AttackResult
from wotlab.warps import compose, warp


class Deform:
    """DeepFool in the space of deformations: the least field that should close the margin."""

    def __init__(self, ball, sigma: float, overshoot: float):
        self.ball, self.sigma, self.overshoot = ball, sigma, overshoot

    def start(self, x: Tensor) -> None:
        self.x, self.flow = x, x.new_zeros(len(x), 2, *x.shape[-2:])

    def step(
        self, z: Tensor, gradient: Tensor, loss: Tensor, broken: Tensor, t: int
    ) -> tuple[Tensor, Tensor]:
        # the margin F(z(s + tau(s))) = F(z) + sum_s <alpha(s), tau(s)> + ...
        slopes = torch.gradient(z, dim=(2, 3))
        alpha = torch.stack([(gradient * slope).sum(1) for slope in slopes], 1)
        # of all fields S tau' that of the least |tau'|; <alpha, S S alpha> is |S alpha|^2 but for
        # the border, where the blur reflects
        field = self.smoothed(self.smoothed(alpha))
        gain = (alpha * field).sum((1, 2, 3)).clamp_min(torch.finfo(z.dtype).tiny)
        wanted = self.overshoot * (-loss).clamp_min(1e-3) / gain
        tau = field * wanted[:, None, None, None]
        # a linear model of an image holds for a pixel or so
        far = tau.norm(dim=1).amax((1, 2))
        tau = tau * (1 / far.clamp_min(1))[:, None, None, None]
        self.flow = compose(self.flow, tau)
        z = warp(self.x, self.flow).clamp(0, 1)  # bilinear weights round
        return z, self.ball.distance(self.x, z)

    def smoothed(self, field: Tensor) -> Tensor:
        if self.sigma == 0:
            return field
        reach = min(math.ceil(3 * self.sigma), min(field.shape[-2:]) - 1)
        return gaussian_blur(field, [2 * reach + 1] * 2, [self.sigma] * 2)

    def select(self, keep: Tensor) -> None:
        self.x, self.flow = self.x[keep], self.flow[keep]


def adef(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball,
    *,
    targeted: bool = False,
    steps: int = 100,
    sigma: float = 0.5,
    overshoot: float = 1.2,
    early_stop: bool = True,
    batch_size: int = 1000,
    progress: bool = False,
) -> AttackResult:
    r"""Deform x until the answer changes: z = x(s + flow(s)), ADef.

    Each step takes the margin F between the best other class and the label as linear in a small
    further field tau, F + <alpha, tau> with alpha(s) = sum_c dF/dz_c(s) grad z_c(s), and the
    field tau = -F S S alpha / \|S alpha\|^2 that closes it, S being a convolution with a
    Gaussian. Fields are composed, so that x itself is sampled, once.

    Parameters
    ----------
    model, x, y, targeted, early_stop, batch_size, progress
        As for `mirror_ascent`.
    ball : any ball but a WassersteinBall
        As for `stadv`: ADef has no budget, it looks for a small deformation.
    steps : int
    sigma : float >= 0
        Deviation of the Gaussian in pixels, 0.5 as in the paper's experiments on MNIST; 0 for none.
    overshoot : float >= 1
        How far past the boundary each step aims, 1.2 in the paper. A step moves no pixel by
        more than 1.

    Returns
    -------
    AttackResult

    Raises
    ------
    ValueError
        As for `mirror_ascent`; for a WassersteinBall, sigma < 0, overshoot < 1.
    """
    checks.positive("sigma", sigma, zero=True)
    checks.positive("overshoot", overshoot)
    if overshoot < 1:
        raise ValueError(f"overshoot must be at least 1; got {overshoot!r}")
    return attack(
        lambda: Deform(not_on_mass(ball), sigma, overshoot),
        model, x, y, ball, targeted=targeted, loss="margin", steps=steps, batch_size=batch_size,
        early_stop=early_stop, progress=progress,
    )  # fmt: skip
