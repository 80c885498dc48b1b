"""The hot loop of every attack on the plan: a soft-max over the window with two multipliers."""

import torch
from torch import Tensor

from wotlab.plans import Moves


def plan_at(psi: Tensor, scores: Tensor, moves: Moves) -> Tensor:
    """Shares (K, N) proportional to exp(scores - psi C)."""
    return torch.softmax(scores - psi[moves.image_index] * moves.costs, 0)


def softmax_plan(
    scores: Tensor, moves: Moves, eps: Tensor, psi: Tensor, phi: Tensor, sweeps: int
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Shares q_i(d) proportional to exp(scores_i(d) - psi C(d) - phi(i + d)).

    They maximise sum_i x_i <q_i, scores_i> + x_i H(q_i) over plans of cost at most eps whose
    image stays in [0, 1]: psi >= 0, one number an image, is the multiplier of distance; phi >= 0,
    one number a pixel, that of a full pixel. Each sweep improves both from the same plan: psi by a
    Newton step on log cost(psi) = log eps, phi <- max(0, phi + log z). Started from the last
    step's multipliers, two or three sweeps come close enough for `moves.repair` to do the rest.

    Parameters
    ----------
    scores : Tensor (K, N)
        -infinity along moves that leave the image.
    moves : Moves
    eps : Tensor (B,), > 0
    psi : Tensor (B,)
    phi : Tensor (B, C, H, W)
    sweeps : int

    Returns
    -------
    shares (K, N), psi, phi

    Notes
    -----
    All that an attack does per step beside the network's gradient is here and in
    `moves.repair`: a fused kernel may replace this function as it is.
    """
    cost = moves.costs
    for _ in range(sweeps):
        q = plan_at(psi, scores - moves.gather(phi), moves)
        paid = (q * cost).sum(0)
        variance = (q * cost.square()).sum(0) - paid.square()
        total = moves.total(paid * moves.mass)
        slope = moves.total(variance * moves.mass)
        newton = psi + (total / eps).clamp_min(1e-6).log() * total / slope.clamp_min(1e-30)
        # far from the root the slope misleads: at most half as much again, or a third less;
        # and where next to nothing moves it says nothing at all
        newton = torch.where(total > 1e-6 * eps, newton, 0)
        psi = torch.minimum(torch.maximum(newton, psi / 1.5), 1.5 * psi + 0.5)
        phi = (phi + moves.push_forward(q).clamp_min(1e-6).log()).clamp_min(0)
    return plan_at(psi, scores - moves.gather(phi), moves), psi, phi
