"""The Gibbs kernel exp(-C / reg) in the log domain, one dimension of the image at a time.

Both the l1 cost with p = 1 and the squared Euclidean cost are a sum over rows and columns, so
their kernel is a product: applying it to an image of n pixels costs two products with small
matrices, O(n^1.5), and no n x n matrix exists.
"""

import math
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

CHUNK = 2**22  # numbers that a sum or minimum may hold at once: 32 MiB of float64


class Factor:
    """exp(log_k) for one matrix (n, m), or one a row of the batch (P, n, m)."""

    def __init__(self, log_k: Tensor):
        self.log_k = log_k
        # A matrix product after the largest h_j is taken out loses nothing while the smallest
        # entry of the kernel lies well above the smallest number of the dtype: the sum holds
        # the term of the largest h_j, and what underflows is smaller than it by a factor that
        # no rounding error would notice. Only a sharper kernel needs the slower log-sum-exp.
        self.smallest = float(log_k.where(log_k > -torch.inf, 0).min())
        self.k = None if sharp(self.smallest, log_k.dtype) else log_k.exp()

    def apply(self, h: Tensor, back: bool = False) -> Tensor:
        """log sum_j exp(log_k_ij + h_j), over the last dimension of h: (P, r, m) to (P, r, n).

        `back`: log sum_i exp(log_k_ij + h_i), from (P, r, n) to (P, r, m).
        """
        if self.k is not None:
            top = h.detach().amax(-1, keepdim=True).clamp_min(torch.finfo(h.dtype).min)
            return ((h - top).exp() @ (self.k if back else self.k.mT)).log() + top
        return reduced(torch.logsumexp, self.log_k.mT if back else self.log_k, h)


def sharp(smallest: float, dtype: torch.dtype) -> bool:
    """Whether a kernel has entries too small for products."""
    return smallest < 0.85 * math.log(torch.finfo(dtype).tiny)


class Kernel:
    """exp(-C / reg) for the cost matrices `axes` of a `Problem`; every result in logarithms."""

    def __init__(self, axes: tuple[Tensor, ...], reg: float):
        self.axes = tuple(c.detach() for c in axes)
        self.reg = reg

    @cached_property
    def factors(self) -> list[Factor]:
        return [Factor(-c / self.reg) for c in self.axes]

    def select(self, rows: Tensor) -> "Kernel":
        """The kernel of some rows only; all rows share it but for batched cost matrices."""
        if self.axes[0].ndim == 2:
            return self
        return Kernel(tuple(c[rows] for c in self.axes), self.reg)

    def box(self, a: tuple[slice, ...], b: tuple[slice, ...]) -> "Kernel":
        """The kernel between a part of a's grid and a part of b's: slices of rows and columns."""
        parts = zip(self.axes[::-1], a[::-1], b[::-1], strict=False)  # one axis: the columns'
        return Kernel(tuple(c[..., i, j] for c, i, j in parts)[::-1], self.reg)

    def apply(self, h: Tensor, back: bool = False) -> Tensor:
        """log sum_j exp(-C_ij / reg + h_j): over b's pixels j, for each of a's pixels i.

        `back`: log sum_i exp(-C_ij / reg + h_i), over a's pixels, for each of b's.
        """
        return _apply(self.factors, h, back)

    def apply_cost(self, h: Tensor) -> Tensor:
        """log sum_j C_ij exp(-C_ij / reg + h_j): what the mass that leaves i pays."""
        paid = [Factor(c.log() - c / self.reg) for c in self.axes]
        if len(paid) == 1:
            return _apply(paid, h)
        rows, columns = self.factors
        return torch.logaddexp(_apply([paid[0], columns], h), _apply([rows, paid[1]], h))

    def dense(self) -> Tensor:
        """-C / reg as one matrix, (n, m) or (P, n, m)."""
        if len(self.axes) == 1:
            return -self.axes[0] / self.reg
        rows, columns = self.axes
        n = len(rows) * len(columns)
        return -(rows[:, None, :, None] + columns[None, :, None, :]).reshape(n, n) / self.reg


def reduced(reduce: Callable, c: Tensor, h: Tensor) -> Tensor:
    """`reduce` c_ij + h_j over j, a part of the batch at a time: (P, r, m) to (P, r, n)."""
    step = max(1, CHUNK // (h.shape[1] * c.shape[-1] * c.shape[-2]))
    blocks = (slice(i, i + step) for i in range(0, len(h), step))
    return torch.cat(
        [reduce(h[k, :, None, :] + (c if c.ndim == 2 else c[k, None]), -1) for k in blocks]
    )


def _apply(factors: list[Factor], h: Tensor, back: bool = False) -> Tensor:
    k = [factor.k if back else factor.k.mT for factor in factors if factor.k is not None]
    if len(k) == 2 and not sharp(sum(factor.smallest for factor in factors), h.dtype):
        # both products at once, and half of the logarithms
        top = h.detach().amax((1, 2), keepdim=True).clamp_min(torch.finfo(h.dtype).min)
        return (k[0].mT @ (h - top).exp() @ k[1]).log() + top
    h = factors[-1].apply(h, back)
    return factors[0].apply(h.mT, back).mT if len(factors) == 2 else h
