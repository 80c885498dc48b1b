"""Onto the internal Wasserstein ball, by a matching that proves that the image is inside."""

from collections.abc import Callable

import torch
from torch import Tensor

from wotlab.internal.distance import matching
from wotlab.patches import PatchCost

HALVINGS = 25
ROUNDING = 1e-5  # relative, of what a matching spends


def project(
    x: Tensor, w: Tensor, eps: float, cost: PatchCost, *, tile: int | None = None
) -> Tensor:
    r"""An image z of [0, 1] near w with IWD(x, z) <= eps: (B, C, H, W).

    With the matching sigma that is best for w, F(z) = (1/N) sum_j c(u_sigma(j), v_j(z)) is convex
    in z and never below IWD(x, z). For the l1 cost z is the nearest image with F(z) <= eps; for
    the l2 cost the last one on the way to w from the mean of what the patches want. Where no
    image has F <= eps (patches that overlap do not fit together in every order) sigma is the
    identity, which wants x itself. `tile` as for `matching`.
    """
    u = cost.cut(x)

    def under(pairs: Tensor) -> tuple[Tensor, Tensor]:
        matched = u.gather(1, pairs[:, :, None].expand_as(u))
        wanted, there = cost.join(matched, x.shape)
        if cost.norm == 1:  # F is a sum over pixels, and over what is wanted of each

            def spent(z: Tensor) -> Tensor:
                return ((z - wanted).abs_().mul_(there)).sum((0, 2, 3, 4)) / u.shape[1]

            z = _by_price(w, wanted, there, eps, spent)
        else:

            def spent(z: Tensor) -> Tensor:
                return cost.along(matched, cost.cut(z)).mean(1)

            z = _on_the_way(w, wanted, there, eps, spent)
        return z, spent(z)

    pairs = matching(x, w.clamp(0, 1), cost, tile=tile)
    z, spent = under(pairs)
    over = spent > eps * (1 + ROUNDING)
    if bool(over.any()):
        own, _ = under(torch.arange(u.shape[1], device=x.device).expand_as(pairs))
        z = torch.where(over[:, None, None, None], own, z)
    return z


def _by_price(w, wanted, there, eps: float, spent: Callable[[Tensor], Tensor]) -> Tensor:
    r"""Each pixel solves min_z (z - w)^2 / 2 + lam sum_m \|z - a_m\|, with a price lam on F.

    The n numbers a_m are what the patches over the pixel want. The solution is the median of
    them and of w + lam (n - 2 k), k = 0..n (Li and Osher, 2009), here as min_k max(a_k, w + lam
    (n - 2 k)) with the a_k in their order and a_0 = -infinity.
    """
    n = there.sum(0)
    a = wanted.masked_fill(~there, torch.inf).sort(0).values
    a = torch.cat([torch.full_like(a[:1], -torch.inf), a])
    slope = n - 2 * torch.arange(len(a), device=w.device)[:, None, None, None, None]

    def at(lam: Tensor) -> Tensor:
        return torch.maximum(a, w + lam[:, None, None, None] * slope).amin(0).clamp(0, 1)

    low = torch.zeros_like(w[:, 0, 0, 0])
    high = (w.abs().amax((1, 2, 3)) + 1) * (spent(at(low)) > eps)  # above every |w - a_m|
    for _ in range(HALVINGS if bool(high.any()) else 0):
        middle = (low + high) / 2
        dear = spent(at(middle)) > eps
        low, high = torch.where(dear, middle, low), torch.where(dear, high, middle)
    return at(high)


def _on_the_way(w, wanted, there, eps: float, spent: Callable[[Tensor], Tensor]) -> Tensor:
    """From the mean of what the patches want towards w, as far as convexity lets F be <= eps."""
    w, mean = w.clamp(0, 1), (wanted * there).sum(0) / there.sum(0)
    least, most = spent(mean), spent(w)
    share = ((eps - least) / (most - least).clamp_min(1e-30)).clamp(0, 1)
    share = torch.where(most <= eps, 1, share)[:, None, None, None]
    return mean + share * (w - mean)
