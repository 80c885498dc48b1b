r"""Markov chains on a box for the Gibbs law of a loss.

.. math:: p(z) \propto e^{\lambda\, \mathrm{loss}(z)}, \quad \mathtt{lo} \le z \le \mathtt{hi}

The law is the adversary of the entropic problem: of all laws p on the box the one that makes
:math:`\mathbb{E}_p[\mathrm{loss}] + H(p) / \lambda` largest (Regniez et al., 2022, propositions 3.3
and 3.4).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wotlab._base import checks, draws
from wotlab._base.draws import Generator

__all__ = ["Chain", "fold", "like", "sample", "soft_maximum"]

RULES = ("sign", "projected", "reflected", "mala")
Place = tuple[Tensor, Tensor, Tensor]  # z, gradient, loss


def fold(z: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
    """Reflect z at the walls of the box until it lies inside; a flat box gives lo.

    Parameters
    ----------
    z, lo, hi : Tensor
        Of shapes that broadcast; lo <= hi.

    Examples
    --------
    >>> import torch
    >>> from wotlab import gibbs
    >>> gibbs.fold(torch.tensor([-0.25, 0.5, 1.25]), torch.zeros(3), torch.ones(3))
    tensor([0.2500, 0.5000, 0.7500])
    """
    width = hi - lo
    place = torch.remainder(z - lo, (2 * width).clamp_min(torch.finfo(z.dtype).tiny))
    return torch.minimum(torch.maximum(lo + width - (place - width).abs(), lo), hi)


@dataclass(frozen=True)
class Chain:
    r"""One step of a chain for the Gibbs law of a loss on the box [lo, hi].

    .. math:: p(z) \propto e^{\lambda\, \mathrm{loss}(z)}, \quad \mathtt{lo} \le z \le \mathtt{hi}

    Below, g is the gradient of the loss and :math:`\xi` a standard Gaussian.

    Parameters
    ----------
    rule : "sign", "projected", "reflected" or "mala"
        "sign": :math:`z + \eta\, \mathrm{sign}(g) + \sigma \xi`, clamped to the box: the paper's
        Algorithm 1. Its law
        is not the Gibbs law, however small the steps (chapter 6 measures it).
        "projected": :math:`z + \tfrac12 \lambda \sigma^2 g + \sigma \xi`, clamped. True gradient,
        but what steps over a wall stays on it.
        "reflected": the same, reflected at the walls. Tends to the Gibbs law as sigma -> 0.
        "mala": the same with the correction of Metropolis and Hastings: the Gibbs law exactly.
    lam : float > 0
        Inverse temperature: near 0 is uniform on the box, large sits at the largest loss.
    sigma : float > 0
        Deviation of the noise a step, in units of z. 0.2 in the paper.
    eta : float > 0
        Of the sign step, in units of z. 0.2 in the paper. The other rules do not use it.

    Raises
    ------
    ValueError
        For an unknown rule, or numbers that are not positive.

    Examples
    --------
    >>> import torch
    >>> from wotlab.gibbs import Chain
    >>> z = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    >>> gradient = torch.tensor([[1.0, -3.0]], dtype=torch.float64)
    >>> Chain("sign", eta=0.1).drift(z, gradient)
    tensor([[0.6000, 0.4000]], dtype=torch.float64)
    >>> Chain("reflected", lam=10, sigma=0.2).drift(z, gradient)
    tensor([[ 0.7000, -0.1000]], dtype=torch.float64)
    """

    rule: str = "reflected"
    lam: float = 10.0
    sigma: float = 0.2
    eta: float = 0.2

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}; got {self.rule!r}")
        for name in ("lam", "sigma", "eta"):
            checks.positive(name, getattr(self, name))

    def drift(self, z: Tensor, gradient: Tensor) -> Tensor:
        """Where a step goes without its noise."""
        if self.rule == "sign":
            return z + self.eta * gradient.sign()
        return z + (self.lam * self.sigma**2 / 2) * gradient

    def move(
        self, z: Tensor, gradient: Tensor, lo: Tensor, hi: Tensor, generator: Generator = None
    ) -> Tensor:
        """The next z, or with "mala" what it might be."""
        far = self.drift(z, gradient) + self.sigma * draws.normal(z, generator)
        if self.rule in ("reflected", "mala"):
            return fold(far, lo, hi)
        return torch.minimum(torch.maximum(far, lo), hi)

    def accept(
        self, now: Place, then: Place, lo: Tensor, hi: Tensor, generator: Generator = None
    ) -> Tensor:
        """Whether each chain goes `then`, booleans (B,).

        `now` and `then` are (z, gradient, loss) before and after. All but "mala" always go.
        """
        if self.rule != "mala":
            return torch.ones_like(now[2], dtype=torch.bool)
        gain = self.lam * (then[2] - now[2])
        forth = self._log_density(then[0], self.drift(now[0], now[1]), lo, hi)
        back = self._log_density(now[0], self.drift(then[0], then[1]), lo, hi)
        return draws.uniform(gain, generator).log() < gain + back - forth

    def _log_density(self, w: Tensor, mean: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        """Of a step from `mean` to `w`, up to a constant: the sum over the mirror images of w."""
        width, terms = hi - lo, []
        middle = torch.round((mean - w) / (2 * width).clamp_min(1e-30))  # images near the mean
        for turn in (-1, 0, 1):
            shift = 2 * width * (middle + turn)
            for image in (w, 2 * lo - w):
                terms.append(-((image + shift - mean) ** 2) / (2 * self.sigma**2))
        each = torch.logsumexp(torch.stack(terms), 0)
        return torch.where(width > 0, each, 0).flatten(1).sum(1)


def sample(
    loss: Callable[[Tensor], Tensor],
    z: Tensor,
    lo: Tensor,
    hi: Tensor,
    chain: Chain,
    steps: int,
    *,
    generator: Generator = None,
) -> Tensor:
    """Run a batch of chains from `z` for `steps` steps: where they end, (B, ...).

    Parameters
    ----------
    loss : function of z (B, ...) that returns (B,)
    z, lo, hi : Tensor
        Start and walls; all of one shape, or such that they broadcast to that of z.
    chain : Chain
    steps : int >= 1
    generator : torch.Generator, optional
        Of all noise.

    Returns
    -------
    Tensor

    Raises
    ------
    ValueError
        For steps < 1, a loss that is no function, walls that are no tensors or do not broadcast
        to the shape of z, or lo above hi.

    Examples
    --------
    >>> import torch
    >>> from wotlab import gibbs
    >>> z = torch.full((5000, 1), 0.5).double()
    >>> noise = torch.Generator().manual_seed(0)
    >>> lo, hi = torch.zeros_like(z), torch.ones_like(z)
    >>> chain = gibbs.Chain("mala", lam=2.0, sigma=0.5)
    >>> ends = gibbs.sample(lambda z: z[:, 0], z, lo, hi, chain, 50, generator=noise)
    >>> abs(float(ends.mean()) - 0.657) < 0.02  # the mean of exp(2 z) on [0, 1]
    True
    """
    checks.function("loss", loss, "lambda z: -z.square().flatten(1).sum(1)")
    checks.instance("chain", chain, Chain)
    checks.count("steps", steps)
    checks.instance("z", z, Tensor)
    lo, hi = _wall("lo", lo, z), _wall("hi", hi, z)
    if bool((lo > hi).any()):
        raise ValueError("lo must be at most hi everywhere")
    if chain.rule != "mala":  # one gradient a step
        for _ in range(steps):
            z = chain.move(*_at(loss, z)[:2], lo, hi, generator)
        return z
    now = _at(loss, z)
    for _ in range(steps):
        then = _at(loss, chain.move(*now[:2], lo, hi, generator))
        go = chain.accept(now, then, lo, hi, generator)
        z, gradient, value = (
            torch.where(like(go, b), b, a) for a, b in zip(now, then, strict=True)
        )
        now = z, gradient, value
    return now[0]


def _wall(name: str, wall: Tensor, z: Tensor) -> Tensor:
    """A wall in the shape of z."""
    try:
        return wall.expand_as(z)
    except (AttributeError, RuntimeError) as error:  # a number; another shape
        found = tuple(wall.shape) if isinstance(wall, Tensor) else checks.found(wall)
        raise ValueError(
            f"{name} must be a tensor that broadcasts to the shape of z, {tuple(z.shape)}, such as "
            f"torch.zeros_like(z); got {found}"
        ) from error


def _at(loss: Callable[[Tensor], Tensor], z: Tensor) -> Place:
    """(z, gradient, loss), detached."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = loss(z)
        (gradient,) = torch.autograd.grad(value.sum(), z)
    return z.detach(), gradient, value.detach()


def like(go: Tensor, part: Tensor) -> Tensor:
    """One value an image, (B,), in a shape that broadcasts over `part` (B, ...).

    Parameters
    ----------
    go : Tensor (B,)
    part : Tensor (B, ...)

    Examples
    --------
    >>> import torch
    >>> from wotlab import gibbs
    >>> gibbs.like(torch.ones(5), torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 1, 1, 1])
    """
    return go.reshape(-1, *[1] * (part.ndim - 1))


def soft_maximum(losses: Tensor, lam: float) -> Tensor:
    r"""Soft maximum of losses over the first axis, (K, ...) to (...).

    .. math:: \frac1\lambda \log \frac1K \sum_{k=1}^K e^{\lambda\, \mathtt{losses}_k}

    Theorem 3.1 of Regniez et al.: for samples of the uniform law on the ball this estimates the
    value of the entropic adversary. lam -> 0 is the mean, lam -> infinity the maximum.

    Parameters
    ----------
    losses : Tensor (K, ...)
    lam : float > 0

    Examples
    --------
    >>> import torch
    >>> from wotlab import gibbs
    >>> losses = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    >>> [round(float(gibbs.soft_maximum(losses, lam)), 3) for lam in (0.001, 1, 1000)]
    [3.002, 4.926, 5.999]
    """
    checks.positive("lam", lam)
    checks.instance("losses", losses, Tensor)
    return (torch.logsumexp(lam * losses, 0) - math.log(len(losses))) / lam
