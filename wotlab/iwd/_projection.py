"""Onto the internal Wasserstein ball, by a matching that proves that the image is inside."""

from collections.abc import Callable

import torch
from torch import Tensor

from wotlab._base import checks
from wotlab.iwd._distance import matching
from wotlab.iwd._patches import PatchCost

HALVINGS = 22
ROUNDING = 1e-5  # relative, of what a matching spends

Spent = Callable[[Tensor], Tensor]  # of images (B, C, H, W): F_m (B,)


def project(
    x: Tensor, w: Tensor, eps: float, cost: PatchCost, *, tile: int | None = None
) -> Tensor:
    r"""An image z of [0, 1] near w with IWD(x, z) <= eps: (B, C, H, W).

    With the matching m that is best for w,

    .. math:: F_m(z) = \frac1N \sum_j c(u_{m(j)}, v_j(z))

    is convex in z and never below IWD(x, z). For the l1 cost z is the nearest image with
    :math:`F_m(z) \le \varepsilon`; for the
    l2 cost the last such image on the way to w from the mean of what the patches ask for. Where
    that has no beginning (patches that overlap do not fit together in every order) m is the
    identity, and the way begins at x.

    Parameters
    ----------
    x : Tensor (B, C, H, W)
        Images in [0, 1].
    w : Tensor (B, C, H, W)
        Any values.
    eps : float >= 0
        In units of the cost.
    cost : PatchCost
    tile : int, optional
        As for `matching`.

    Raises
    ------
    ValueError
        As `matching`; for eps < 0, w of another shape.

    Examples
    --------
    >>> from wotlab import PatchCost, data, iwd
    >>> x, _ = data.load("digits").tensors(slice(2))
    >>> x, w = x[:1].double(), x[1:].double()
    >>> z = iwd.project(x, w, 0.5, PatchCost())
    >>> bool(iwd.exact(x, z) <= 0.5 + 1e-9)
    True
    """
    checks.positive("eps", eps, zero=True)
    checks.instance("cost", cost, PatchCost)
    checks.instance("x", x, Tensor)
    checks.tensor("w", w, 4, "(B, C, H, W)")
    checks.same_shape("w", w, "x", x)
    u = cost.cut(x)

    def under(pairs: Tensor, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
        matched = u.gather(1, pairs[:, :, None].expand_as(u))
        asked, there = cost.join(matched, x.shape)
        if cost.norm == 1:  # F is a sum over pixels, and over what is asked of each

            def spent(z: Tensor) -> Tensor:
                return ((z - asked).abs_().mul_(there)).sum((0, 2, 3, 4)) / u.shape[1]

            z = _by_multiplier(w, asked, there, eps, spent)
        else:

            def spent(z: Tensor) -> Tensor:
                return cost.along(matched, cost.cut(z)).mean(1)

            if start is None:
                start = (asked * there).sum(0) / there.sum(0)
            z = _on_the_way(start, w.clamp(0, 1), eps, spent)
        return z, spent(z)

    pairs = matching(x, w.clamp(0, 1), cost, tile=tile)
    z, spent = under(pairs)
    over = spent > eps * (1 + ROUNDING)
    if bool(over.any()):
        own, _ = under(torch.arange(u.shape[1], device=x.device).expand_as(pairs), start=x)
        z = torch.where(over[:, None, None, None], own, z)
    return z


def _by_multiplier(w: Tensor, asked: Tensor, there: Tensor, eps: float, spent: Spent) -> Tensor:
    r"""Each pixel solves min_t (t - w)^2 / 2 + lam sum_l \|t - a_l\|, lam the multiplier of F_m.

    The n numbers a_l are what the patches over the pixel ask for. The solution is the median of
    them and of w + lam (n - 2 l), l = 0..n (Li and Osher, 2009), here as min_l max(a_l, w + lam
    (n - 2 l)) with the a_l in their order and a_0 = -infinity.
    """
    n = there.sum(0)
    a = asked.masked_fill(~there, torch.inf).sort(0).values
    a = torch.cat([torch.full_like(a[:1], -torch.inf), a])
    slope = n - 2 * torch.arange(len(a), device=w.device)[:, None, None, None, None]

    def at(lam: Tensor) -> Tensor:
        return torch.maximum(a, w + lam[:, None, None, None] * slope).amin(0).clamp(0, 1)

    free = torch.zeros_like(w[:, 0, 0, 0])
    dear = (w - asked).abs_().mul_(there).amax((0, 2, 3, 4))  # there every pixel is at its median
    dear *= spent(at(free)) > eps
    return at(_edge(dear, free, lambda lam: spent(at(lam)) > eps))


def _on_the_way(start: Tensor, w: Tensor, eps: float, spent: Spent) -> Tensor:
    """From `start` towards w, as far as F_m is at most eps."""

    def at(share: Tensor) -> Tensor:
        return start + share[:, None, None, None] * (w - start)

    whole = torch.ones_like(w[:, 0, 0, 0])
    begin = (spent(w) <= eps).to(w)
    return at(_edge(begin, whole, lambda share: spent(at(share)) > eps))


def _edge(inside: Tensor, outside: Tensor, over: Callable[[Tensor], Tensor]) -> Tensor:
    """Between a number inside and one outside, (B,) each: the last one that is not over."""
    for _ in range(HALVINGS if bool((inside != outside).any()) else 0):
        middle = (inside + outside) / 2
        beyond = over(middle)
        inside = torch.where(beyond, inside, middle)
        outside = torch.where(beyond, middle, outside)
    return inside
