r"""How a plan's marginal m may differ from the histogram a it is asked to have.

With potentials in nats, F = f / reg, and the marginal m = a exp(F - T) that the plan would have
before the potential is updated (T the soft c-transform of the other potential), each kind says:
the update `solve`, the best common `shift` (F + s, G - s: the same plan, so for large tau plain
updates hardly find it; Sejourne et al., 2022), the marginal that optimality asks for at F, the
penalty of a marginal, and the dual's term with its derivative in a.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["KL", "L2", "Balanced", "Marginal", "wright_omega"]


def wright_omega(z: Tensor) -> Tensor:
    r"""Wright's omega function: Lambert's W of exp(z), with no overflow for any real z.

    .. math:: w + \log w = z, \quad w > 0

    Newton's method on the concave left-hand side, from a start that makes it monotone; the
    result is exact to rounding for float32 and float64. Below z = -40, w = exp(z).

    Parameters
    ----------
    z : Tensor
        Of any shape; floats.

    Examples
    --------
    >>> import torch
    >>> from wotlab import ot
    >>> w = ot.wright_omega(torch.tensor([1.0, 1000.0], dtype=torch.float64))
    >>> (w + w.log()).round(decimals=6)
    tensor([   1., 1000.], dtype=torch.float64)
    """
    w = torch.where(z > 1, z - z.clamp_min(1).log(), z.clamp(-40, 1).exp() * 0.5)
    for _ in range(7):
        w = w * (1 + z.clamp_min(-40) - w.log()) / (1 + w)
    return torch.where(z < -40, z.exp(), w)


@dataclass(frozen=True)
class Balanced:
    """The marginal is held exactly.

    .. math:: m = a

    Examples
    --------
    >>> import torch
    >>> from wotlab.ot import marginals
    >>> f, a = torch.tensor([0.5]).double(), torch.tensor([1.0]).double()
    >>> marginals.Balanced().wanted(f, a, reg=0.1)  # the marginal itself
    tensor([1.], dtype=torch.float64)
    """

    def solve(self, t: Tensor, a: Tensor, reg: float) -> Tensor:
        return t

    def shift(self, f: Tensor, g: Tensor, a: Tensor, b: Tensor, reg: float) -> float | Tensor:
        return 0.0  # the dual does not depend on it

    def wanted(self, f: Tensor, a: Tensor, reg: float) -> Tensor:
        return a

    def penalty(self, m: Tensor, a: Tensor) -> Tensor:
        return torch.zeros_like(a)

    def dual(self, f: Tensor, a: Tensor) -> Tensor:
        return a * f

    def slope(self, f: Tensor, a: Tensor) -> Tensor:
        return f


@dataclass(frozen=True)
class KL:
    r"""The marginal is held by a relative entropy (Chizat et al., 2018).

    .. math:: \tau\, \mathrm{KL}(m \mid a) = \tau \sum m \log\frac{m}{a} - m + a

    Parameters
    ----------
    tau : float > 0
        Weight of the penalty.

    Examples
    --------
    >>> import torch
    >>> from wotlab.ot import marginals
    >>> m, a = torch.tensor([0.5]).double(), torch.tensor([1.0]).double()
    >>> marginals.KL(tau=2.0).penalty(m, a).round(decimals=4)
    tensor([0.3069], dtype=torch.float64)
    """

    tau: float

    def solve(self, t: Tensor, a: Tensor, reg: float) -> Tensor:
        return t * (self.tau / (self.tau + reg))

    def shift(self, f: Tensor, g: Tensor, a: Tensor, b: Tensor, reg: float) -> float | Tensor:
        left, right = (
            torch.logsumexp((m.log() - u * (reg / self.tau)).flatten(1), 1)
            for m, u in ((a, f), (b, g))
        )
        return ((left - right) * (self.tau / (2 * reg)))[:, None, None]

    def wanted(self, f: Tensor, a: Tensor, reg: float) -> Tensor:
        return a * (-f * (reg / self.tau)).exp()

    def penalty(self, m: Tensor, a: Tensor) -> Tensor:
        log_a = torch.where(a > 0, a, 1).log()  # no slope where a is 0, as m is
        return self.tau * (torch.xlogy(m, m) - m * log_a - m + a)

    def dual(self, f: Tensor, a: Tensor) -> Tensor:
        return a * self.slope(f, a)

    def slope(self, f: Tensor, a: Tensor) -> Tensor:
        return -self.tau * (-f / self.tau).expm1()


@dataclass(frozen=True)
class L2:
    r"""The marginal is held by a squared distance.

    .. math:: \frac{\tau}{2} \lVert m - a\rVert^2

    Parameters
    ----------
    tau : float > 0
        Weight of the penalty.

    Examples
    --------
    >>> import torch
    >>> from wotlab.ot import marginals
    >>> m, a = torch.tensor([0.5]).double(), torch.tensor([1.0]).double()
    >>> marginals.L2(tau=2.0).penalty(m, a)
    tensor([0.2500], dtype=torch.float64)
    """

    tau: float

    def solve(self, t: Tensor, a: Tensor, reg: float) -> Tensor:
        # m = a - f / tau and log m = log a + F - t: one equation for m, solved by Wright's omega
        s = self.tau / reg
        return s * a - wright_omega((s * a).log() + s * a - t)

    def shift(self, f: Tensor, g: Tensor, a: Tensor, b: Tensor, reg: float) -> float | Tensor:
        left, right = (
            (m * (self.tau / reg) - u * (m > 0)).sum((1, 2)) for m, u in ((a, f), (b, g))
        )
        pixels = (a > 0).sum((1, 2)) + (b > 0).sum((1, 2))
        return ((left - right) / pixels)[:, None, None]

    def wanted(self, f: Tensor, a: Tensor, reg: float) -> Tensor:
        return a - f * (reg / self.tau)

    def penalty(self, m: Tensor, a: Tensor) -> Tensor:
        return self.tau / 2 * (m - a).square()

    def dual(self, f: Tensor, a: Tensor) -> Tensor:
        return a * f - f.square() / (2 * self.tau)

    def slope(self, f: Tensor, a: Tensor) -> Tensor:
        return f


#: How a plan's marginals are held: exactly, or for a penalty.
Marginal = Balanced | KL | L2
