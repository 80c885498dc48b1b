"""Balls that bound how much brightness changes: l-infinity and l2."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from wotlab._base import draws
from wotlab.balls._ball import Ball


@dataclass(frozen=True)
class LinfBall(Ball):
    r"""Images each of whose pixels changes by at most eps.

    .. math:: \{z : \lvert z_i - x_i\rvert \le \varepsilon \text{ for every pixel } i,\
        0 \le z \le 1\}

    Parameters
    ----------
    eps : float >= 0
        In units of brightness, 1 from black to white.

    Raises
    ------
    ValueError
        For eps < 0 or infinite.

    Examples
    --------
    >>> import torch
    >>> from wotlab import LinfBall
    >>> x = torch.tensor([[[[0.0, 0.9]]]], dtype=torch.float64)
    >>> LinfBall(0.2).project(x, x + 0.5)
    tensor([[[[0.2000, 1.0000]]]], dtype=torch.float64)
    """

    norm: ClassVar[str] = "Linf"
    closed: ClassVar[bool] = True
    whole: ClassVar[float] = 1.0

    def noise(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Uniform in [-eps, eps]."""
        return self.eps * (2 * draws.uniform(x, generator) - 1)

    def distance(self, x: Tensor, z: Tensor) -> Tensor:
        """Largest change of a pixel: (B,)."""
        return (z - x).abs().amax((1, 2, 3))

    def project(self, x: Tensor, w: Tensor, eps: Tensor | None = None) -> Tensor:
        """The nearest image of the ball, or of one an image of radius `eps` (B, 1, 1, 1)."""
        far = self.eps if eps is None else eps
        return torch.minimum(torch.maximum(w, x - far), x + far).clamp(0, 1)

    def walls(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest and the largest value that each pixel may take."""
        return (x - self.eps).clamp_min(0), (x + self.eps).clamp_max(1)

    def step(self, gradient: Tensor, size: float) -> Tensor:
        """Steepest ascent: `size` times the gradient's sign."""
        return size * gradient.sign()


@dataclass(frozen=True)
class L2Ball(Ball):
    r"""Images whose change has a Euclidean length of at most eps.

    .. math:: \{z : \lVert z - x\rVert_2 \le \varepsilon,\ 0 \le z \le 1\}

    Parameters
    ----------
    eps : float >= 0
        In units of brightness, over all pixels and channels.

    Raises
    ------
    ValueError
        For eps < 0 or infinite.

    Examples
    --------
    >>> import torch
    >>> from wotlab import L2Ball
    >>> x = torch.zeros(1, 1, 1, 2, dtype=torch.float64)
    >>> L2Ball(0.5).project(x, x + torch.tensor([3.0, 4.0]) / 5)
    tensor([[[[0.3000, 0.4000]]]], dtype=torch.float64)
    """

    norm: ClassVar[str] = "L2"
    closed: ClassVar[bool] = True

    def noise(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Gaussian, of length eps in the mean square."""
        return self.eps / x[0].numel() ** 0.5 * draws.normal(x, generator)

    def distance(self, x: Tensor, z: Tensor) -> Tensor:
        """Euclidean length of the change: (B,)."""
        return (z - x).flatten(1).norm(dim=1)

    def project(self, x: Tensor, w: Tensor, eps: Tensor | None = None) -> Tensor:
        """Clamped to [0, 1], then pulled towards x: in the ball, since x lies in [0, 1].

        With `eps` (B, 1, 1, 1) each image has a ball of its own radius.
        """
        change = w.clamp(0, 1) - x
        length = change.flatten(1).norm(dim=1).clamp_min(1e-30)[:, None, None, None]
        return x + change * ((self.eps if eps is None else eps) / length).clamp(max=1)

    def step(self, gradient: Tensor, size: float) -> Tensor:
        """Steepest ascent: the gradient scaled to length `size`."""
        length = gradient.flatten(1).norm(dim=1).clamp_min(1e-30)
        return size * gradient / length[:, None, None, None]
