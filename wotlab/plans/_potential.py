"""All plans of one form: a potential on the pixels says where mass goes, and nothing is stored."""

import math
from copy import copy
from functools import cache
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from wotlab._base import checks
from wotlab._base.kernels import agrees
from wotlab._base.precision import wide
from wotlab.ot import GroundCost
from wotlab.plans._plan import TransportPlan


class PotentialPlans:
    r"""The plans from the pixels of images x that a potential G makes, never stored.

    .. math:: q_i(j) \propto \exp(G_j - \phi_j - \psi\, C_{ij})

    They maximise :math:`\sum_i x_i \langle q_i, G\rangle + x_i H(q_i)` over the plans of cost at
    most eps whose image stays in [0, 1]: G (B, C, H, W) is the potential, what mass is worth where
    it arrives; psi (B,) is the multiplier of distance and phi (B, C, H, W) that of full pixels,
    both at least 0. The plan is
    a soft c-transform of G, and all that is asked of it are sums over a window around each pixel,
    of the pixels that lie equally far together: no tensor of pixels times window is ever made.

    Parameters
    ----------
    x : Tensor (B, C, H, W)
        Images in [0, 1]. Computed in float64 (float32 on MPS): sums are of exponentials.
    ground_cost : GroundCost
        Its window limits the moves. Potentials may span log(largest number), 690 in float64;
        what lies further below an image's highest is raised. Of float32 images on a GPU a `step`
        is one kernel in float32, where Triton is installed and costs stay below 1e15.

    Examples
    --------
    >>> import torch
    >>> from wotlab import GroundCost, plans
    >>> x = torch.tensor([[[[1.0, 0.0, 0.0]]]], dtype=torch.float64)
    >>> found = plans.PotentialPlans(x, GroundCost(None))
    >>> G, one = 9 * x.flip(3), torch.ones(1, dtype=torch.float64)  # worth most on the right
    >>> phi, psi, z, cost = found.step(G, 0 * x, one, eps=0.5 * one, sweeps=50)
    >>> z.round(decimals=2)
    tensor([[[[0.7500, 0.0000, 0.2500]]]], dtype=torch.float64)
    >>> cost.round(decimals=3)
    tensor([0.5000], dtype=torch.float64)
    """

    def __init__(self, x: Tensor, ground_cost: GroundCost):
        checks.instance("x", x, Tensor)
        checks.instance("ground_cost", ground_cost, GroundCost)
        self.x, self.ground_cost = x.to(wide(x.device)), ground_cost
        self.total = self._sum(self.x).clamp_min(self._least)
        self.mass = self.x / self.total[:, None, None, None]
        self.radii = ground_cost.radii(*x.shape[-2:])
        steps = torch.cartesian_prod(*(torch.arange(radius + 1) for radius in self.radii))
        costs = ground_cost.between(steps[:1], steps, self.x.dtype)[0]
        most = torch.finfo(self.x.dtype).max ** 0.5 / (4 * len(steps))
        # C(d) of each distance, (J,), with a finite square
        self.costs = costs.clamp_max(most).to(x.device)
        single = x.is_cuda and x.dtype == torch.float32  # who brings float64 wants its digits
        self.fused = single and bool(costs.max() < 1e15) and fuses(x.device)

    def select(self, keep: Tensor) -> Self:
        """The same for some of the images: their places, or booleans."""
        some = copy(self)
        some.x, some.total, some.mass = self.x[keep], self.total[keep], self.mass[keep]
        return some

    def step(
        self, G: Tensor, phi: Tensor, psi: Tensor, eps: Tensor, sweeps: int = 1
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Multipliers after some sweeps, phi and psi; the feasible image, and its cost."""
        if self.fused:
            from wotlab.plans import _fused

            return _fused.step(self.x, G, phi, psi, eps, self.costs, self.radii, sweeps)
        for _ in range(sweeps):
            phi, psi = self.sweep(G, phi, psi, eps.clamp_min(1e-12))
        return phi, psi, *self.feasible(G, phi, psi, eps)

    def sweep(self, G: Tensor, phi: Tensor, psi: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        r"""Better multipliers phi and psi, both from the same plan.

        psi by a Newton step on log cost(psi) = log eps, phi <- max(0, phi + log z). Started from
        the last step's, one or two sweeps come close enough for `feasible` to do the rest.
        """
        weight, near = self._exponentials(G - phi, psi)
        total, first, second = self._around(
            weight, near, near * self.costs, near * self.costs.square()
        )
        paid = first / total
        cost, slope = self._sum(paid * self.mass), second / total - paid.square()
        newton = psi + (cost / eps).clamp_min(1e-6).log() * cost / self._sum(
            slope * self.mass
        ).clamp_min(1e-30)
        # far from the root the slope misleads: at most half as much again, or a third less;
        # and where next to nothing moves it says nothing at all
        newton = torch.where(cost > 1e-6 * eps, newton, 0)
        (inflow,) = self._around(self.x / total, near)
        full = (weight * inflow).clamp_min(1e-6).log()
        return (phi + full).clamp_min(0), newton.clamp(psi / 1.5, 1.5 * psi + 0.5)

    def feasible(self, G: Tensor, phi: Tensor, psi: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        r"""The plan's image, (B, C, H, W), and cost, (B,), made feasible as `repair` does.

        Mass that overfills a pixel goes back to where it came from, four times; in images that
        are still too full all pixels then take no more than 1 - x. At last the blend with the plan
        that moves nothing: z in [0, 1], cost at most eps.
        """
        weight, near = self._exponentials(G - phi, psi)
        total, paid = self._around(weight, near, near * self.costs)
        share = self.x / total  # of its weight, what a pixel sends to each target
        away = near.clone()
        away[:, 0] = 0
        (inflow,) = self._around(share, away)
        accepted, arriving, stays = weight, weight * inflow, share * weight
        z = arriving + stays
        # what the last line cuts off is mass lost: next to nothing of what the budget moves
        least, most = (8 * torch.finfo(dtype).eps for dtype in (z.dtype, torch.float32))
        rounding = 1 + (1e-4 * eps).clamp(least, most)[:, None, None, None]
        for turn in range(5):
            full = z > rounding
            if not (full.is_cuda or bool(full.any())):  # a GPU is not waited for
                break
            if turn == 4:
                full, stays = full.flatten(1).any(1)[:, None, None, None], self.x
            room = ((1 - stays) / arriving.clamp_min(self._least)).clamp(0, 1)
            accepted = accepted * torch.where(full, room, 1)
            left, paid = self._around(accepted, away, away * self.costs)
            arriving, stays = accepted * inflow, self.x - share * left
            z = arriving + stays
        cost = self._sum(share * paid) / self.total
        keep = (eps / cost.clamp_min(self._least)).clamp(max=1)
        z = self.x + keep[:, None, None, None] * (z - self.x)
        return z.clamp(0, 1), cost * keep  # a pixel may leave [0, 1] by rounding

    def plan(self, G: Tensor, phi: Tensor, psi: Tensor) -> TransportPlan:
        """The plan itself, on the whole grid, before any repair."""
        h, w = self.x.shape[-2:]
        costs = self.ground_cost.costs(h, w, self.x.device, self.x.dtype)
        inside = self.ground_cost.inside(h, w, self.x.device)
        scores = self.ground_cost.gather(G.to(self.x.dtype) - phi)
        scores = scores - psi[:, None, None, None, None] * costs[:, None, None]
        shares = scores.masked_fill(~inside, -torch.inf).softmax(2)
        return TransportPlan(shares * self.x[:, :, None], self.ground_cost)

    @property
    def _least(self) -> float:
        return torch.finfo(self.x.dtype).tiny

    def _exponentials(self, potential: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
        """exp of a potential, its largest value at 1, and exp(-psi C) of each distance, (B, J)."""
        deepest = -0.97 * math.log(torch.finfo(self.x.dtype).max)
        potential = potential.to(self.x.dtype)
        below = potential - potential.amax((1, 2, 3), keepdim=True)
        near = -psi[:, None].to(self.x.dtype) * self.costs
        return below.clamp_min(deepest).exp(), near.clamp_min(deepest).exp()

    def _around(self, image: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        """sum_d weight(|d|) image(i + d) for weights (B, J) of the distances: images, one each.

        The window is symmetric: rows that lie equally far above and below are added first, then
        columns, and each distance has its weight once.
        """
        b, c, h, w = image.shape
        down, right = self.radii
        many = torch.stack(weights, 1).repeat_interleave(c, 0)
        many = many.reshape(b * c, len(weights), down + 1, right + 1)
        padded = F.pad(image.reshape(b * c, h, w), (right, right, down, down))
        total = image.new_zeros(b * c, len(weights), h * w)
        alike = image.new_empty(b * c, right + 1, h, w)
        for i in range(down + 1):
            rows = padded[:, down - i : down - i + h]
            rows = rows + padded[:, down + i : down + i + h] if i else rows
            alike[:, 0] = rows[..., right : right + w]
            for j in range(1, right + 1):
                left, other = right - j, right + j
                torch.add(rows[..., left : left + w], rows[..., other : other + w], out=alike[:, j])
            total.baddbmm_(many[:, :, i], alike.flatten(2))
        return total.reshape(b, c, len(weights), h, w).unbind(2)

    @staticmethod
    def _sum(value: Tensor) -> Tensor:
        return value.sum((1, 2, 3))


@cache
def fuses(device: torch.device) -> bool:
    """Whether the kernel runs on a device, and gives what PyTorch gives there."""
    x = torch.linspace(-0.5, 1.5, 35, dtype=torch.float64, device=device).clamp(0, 1)
    plans, one = PotentialPlans(x.reshape(1, 1, 5, 7), GroundCost(3)), torch.ones_like(x[:1])
    given = 9 * plans.x.flip(3), 0 * plans.x, one, 0.3 * one, 2
    wanted, plans.fused = plans.step(*given), True
    return agrees("the plans", lambda: plans.step(*given), wanted, 1e-3, 1e-4)
