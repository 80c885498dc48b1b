"""ADef: a small deformation that changes the answer, step by step (Alaifari et al., 2019)."""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from wotlab._base import checks
from wotlab._base.networks import logits_of
from wotlab.attacks._loop import Moved, Stepper, attack, climbing, not_on_mass
from wotlab.attacks._objective import Objective
from wotlab.attacks._result import AttackResult
from wotlab.balls import Ball
from wotlab.transformations import compose, warp

FLAT = 1e-28  # what a field gains where image or margin are constant; 0 but for rounding


def smoothed(field: Tensor, sigma: float) -> Tensor:
    """S field: a convolution with a Gaussian of deviation sigma, in pixels."""
    from torchvision.transforms.functional import gaussian_blur

    if sigma == 0:
        return field
    reach = min(math.ceil(3 * sigma), min(field.shape[-2:]) - 1)
    return gaussian_blur(field, [2 * reach + 1] * 2, [sigma] * 2)


def least_field(z: Tensor, gradient: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """The direction S S alpha of the least field, (B, 2, H, W), and what it gains, |S alpha|^2.

    A margin F of z with this gradient is F(z(s + tau(s))) = F(z) + sum_s <alpha(s), tau(s)> + ...,
    and of all fields tau = S tau' this direction has the least |tau'| for a gain.
    """
    slopes = torch.gradient(z, dim=(2, 3))
    alpha = torch.stack([(gradient * slope).sum(1) for slope in slopes], 1)
    field = smoothed(smoothed(alpha, sigma), sigma)  # <alpha, field> is |S alpha|^2 but for
    gain = (alpha * field).sum((1, 2, 3))  # the border, where the blur reflects
    return field, gain.clamp_min(torch.finfo(z.dtype).tiny)


@dataclass(frozen=True, eq=False, kw_only=True)
class Nearest(Objective):
    """The margin of the class that the least field should reach, among those of largest logits."""

    candidates: int
    sigma: float

    def gradient(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.targeted:  # one class to reach
            return super().gradient(z)
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            logits = logits_of(self.model, z)
            own = self.y[:, None]
            margins = logits - logits.gather(1, own)
            rivals = margins.scatter(1, own, -torch.inf).topk(
                min(self.candidates, logits.shape[1] - 1), dim=1
            )
            best = z.new_full((len(z),), torch.inf)
            gradient, loss = torch.zeros_like(z), torch.zeros_like(best)
            for margin in rivals.values.unbind(1):
                (slope,) = torch.autograd.grad(margin.sum(), z, retain_graph=True)
                _, gain = least_field(z.detach(), slope, self.sigma)
                length = margin.detach().abs() / gain.sqrt()  # |tau'|
                nearer = length < best
                best = torch.where(nearer, length, best)
                loss = torch.where(nearer, margin.detach(), loss)
                gradient = torch.where(nearer[:, None, None, None], slope, gradient)
        return gradient, loss, self.broken(logits.detach())


@dataclass(eq=False)
class Deform(Stepper):
    """DeepFool in the space of deformations: the least field that should close the margin."""

    sigma: float
    overshoot: float

    def start(self, x: Tensor) -> Moved:
        self.x, self.flow = x, x.new_zeros(len(x), 2, *x.shape[-2:])
        return x, x.new_zeros(len(x))

    def step(self, z: Tensor, gradient: Tensor, loss: Tensor, broken: Tensor, t: int) -> Moved:
        field, gain = least_field(z, gradient, self.sigma)
        wanted = self.overshoot * (-loss).clamp_min(1e-3) / gain
        wanted = torch.where(gain > FLAT, wanted, 0)  # nothing there that moving could change
        tau = field * wanted[:, None, None, None]
        # a linear model of an image holds for a pixel or so
        far = tau.norm(dim=1).amax((1, 2))
        tau = tau * (1 / far.clamp_min(1))[:, None, None, None]
        self.flow = compose(self.flow, tau)
        z = warp(self.x, self.flow).clamp(0, 1)  # bilinear weights round
        return z, torch.zeros_like(loss)  # its distance: once, at the end


def adef(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    targeted: bool = False,
    steps: int = 100,
    candidates: int = 9,
    sigma: float = 0.5,
    overshoot: float = 1.2,
    early_stop: bool = True,
    batch_size: int = 1000,
    progress: bool = False,
) -> AttackResult:
    r"""Deform x until the answer changes: z = x(s + flow(s)), ADef.

    Each step takes the margin F between a rival class and the label as linear in a small further
    field tau. The least field that closes the margin, S being a convolution with a Gaussian, is

    .. math:: \tau = -F\, \frac{S S \alpha}{\lVert S \alpha\rVert^2}, \qquad
        \alpha(s) = \sum_c \frac{\partial F}{\partial z_c(s)} \nabla z_c(s)

    The rival is the one whose field is shortest. Fields are composed, so that x itself is sampled,
    once.

    Parameters
    ----------
    model, x, y, targeted, early_stop, batch_size, progress
        As for `mirror_ascent`.
    ball : any ball but a WassersteinBall
        As for `stadv`: ADef has no budget, it looks for a small deformation.
    steps : int
    candidates : int
        Rival classes that each step compares, those of the largest logits; a gradient each. 9 are
        all others of ten classes. Targeted there is only the target.
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
        As for `mirror_ascent`; for a WassersteinBall, images of one row or column, candidates < 1,
        sigma < 0, overshoot < 1.

    Examples
    --------
    >>> from wotlab import LinfBall, attacks, data, models
    >>> model = models.load("digits-standard").double()
    >>> x, y = data.load("digits").tensors(slice(4))
    >>> done = attacks.adef(model, x.double(), y, LinfBall(1.0))  # a ball that holds all
    >>> done.success, done.steps
    (tensor([True, True, True, True]), tensor([1, 1, 1, 1]))
    """
    checks.count("candidates", candidates)
    checks.images("x", x, black=True)
    if min(x.shape[-2:]) < 2:
        raise ValueError(f"x must have 2x2 pixels or more; got {x.shape[-2]}x{x.shape[-1]}")
    checks.positive("sigma", sigma, zero=True)
    checks.positive("overshoot", overshoot)
    if overshoot < 1:
        raise ValueError(f"overshoot must be at least 1; got {overshoot!r}")

    run = climbing(Deform(sigma, overshoot), steps)
    return attack(
        [run], model, x, y, not_on_mass(ball), targeted=targeted, loss="margin",
        batch_size=batch_size, early_stop=early_stop, progress=progress, exact=True,
        objective=partial(Nearest, candidates=candidates, sigma=sigma),
    )  # fmt: skip
