"""The Gibbs kernel exp(-C / reg) in the log domain, one dimension of the image at a time.

Both the l1 cost with p = 1 and the squared Euclidean cost are a sum over rows and columns, so
their kernel is a product: applying it to an image of n pixels costs two products with small
matrices, O(n^1.5), and no n x n matrix exists.
"""

import math

import torch
from torch import Tensor

CHUNK = 2**22  # numbers that a log-sum-exp may hold at once: 32 MiB of float64


class Factor:
    """exp(log_k) for one matrix (n, m), or one a row of the batch (P, n, m)."""

    def __init__(self, log_k: Tensor):
        self.log_k = log_k
        # A matrix product after the largest h_j is taken out loses nothing while the smallest
        # entry of the kernel lies well above the smallest number of the dtype: the sum holds
        # the term of the largest h_j, and what underflows is smaller than it by a factor that
        # no rounding error would notice. Only a sharper kernel needs the slower log-sum-exp.
        smallest = float(log_k.where(log_k > -torch.inf, 0).min())
        sharp = smallest < 0.85 * math.log(torch.finfo(log_k.dtype).tiny)
        self.k = None if sharp else log_k.exp()

    def transposed(self) -> "Factor":
        other = object.__new__(Factor)
        other.log_k, other.k = self.log_k.mT, None if self.k is None else self.k.mT
        return other

    def apply(self, h: Tensor) -> Tensor:
        """log sum_j exp(log_k_ij + h_j), over the last dimension of h: (P, r, m) to (P, r, n)."""
        if self.k is not None:
            top = h.detach().amax(-1, keepdim=True).clamp_min(torch.finfo(h.dtype).min)
            return ((h - top).exp() @ self.k.mT).log() + top
        rows = max(1, CHUNK // (h.shape[1] * self.log_k.shape[-1] * self.log_k.shape[-2]))
        log_k = self.log_k if self.log_k.ndim == 2 else self.log_k[:, None]
        parts = [
            torch.logsumexp(
                h[i : i + rows, :, None, :] + (log_k if log_k.ndim == 2 else log_k[i : i + rows]),
                dim=-1,
            )
            for i in range(0, len(h), rows)
        ]
        return torch.cat(parts)


class Kernel:
    """exp(-C / reg) for the cost matrices `axes` of a `Problem`; every result in logarithms."""

    def __init__(self, axes: tuple[Tensor, ...], reg: float):
        self.axes = tuple(c.detach() for c in axes)
        self.reg = reg
        self.factors = [Factor(-c / reg) for c in self.axes]
        self.transposed = [factor.transposed() for factor in self.factors]

    def select(self, rows: Tensor) -> "Kernel":
        """The kernel of some rows only; all rows share it but for batched cost matrices."""
        if self.axes[0].ndim == 2:
            return self
        return Kernel(tuple(c[rows] for c in self.axes), self.reg)

    def apply(self, h: Tensor) -> Tensor:
        """log sum_j exp(-C_ij / reg + h_j): over b's pixels j, for each of a's pixels i."""
        return _apply(self.factors, h)

    def apply_transposed(self, h: Tensor) -> Tensor:
        """log sum_i exp(-C_ij / reg + h_i): over a's pixels i, for each of b's pixels j."""
        return _apply(self.transposed, h)

    def apply_cost(self, h: Tensor) -> Tensor:
        """log sum_j C_ij exp(-C_ij / reg + h_j): what the mass that leaves i pays."""
        paid = [Factor(c.log() - c / self.reg) for c in self.axes]
        if len(paid) == 1:
            return _apply(paid, h)
        rows, columns = self.factors
        return torch.logaddexp(_apply([paid[0], columns], h), _apply([rows, paid[1]], h))

    def dense(self) -> Tensor:
        """-C / reg as one matrix, (n, m) or (P, n, m)."""
        return -outer_sum(self.axes) / self.reg


def outer_sum(axes: tuple[Tensor, ...]) -> Tensor:
    """One cost matrix from those of rows and columns: n x n numbers, for exact solvers."""
    if len(axes) == 1:
        return axes[0]
    rows, columns = axes
    n = len(rows) * len(columns)
    return (rows[:, None, :, None] + columns[None, :, None, :]).reshape(n, n)


def _apply(factors: list[Factor], h: Tensor) -> Tensor:
    h = factors[-1].apply(h)
    return factors[0].apply(h.mT).mT if len(factors) == 2 else h
