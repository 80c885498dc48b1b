"""What all threat models share."""

import torch
from torch import Tensor

from wotlab._base import checks, draws

NOISE = 0.1  # deviation of a random start, in brightness, where eps is no brightness


class Ball:
    """What all threat models share: a budget, and a start for attacks that do not begin at x."""

    eps: float

    def __post_init__(self):
        checks.positive("eps", self.eps, zero=True)

    def contains(self, x: Tensor, z: Tensor) -> Tensor:
        """Whether z lies in the ball around x, by the certificate: booleans (B,)."""
        from wotlab.balls._certificate import certify

        return certify(x, z, self).inside

    def noise(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """What a random start adds to the images: Gaussian, of deviation 0.1."""
        return NOISE * draws.normal(x, generator)

    def random_start(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A random image of the ball around each x: its noise, projected."""
        return self.project(x, x + self.noise(x, generator))

    def default_step(self, x: Tensor) -> Tensor | float:
        """Step of projected gradients, in units of brightness: eps / 4."""
        return self.eps / 4


def largest(gradient: Tensor, size: float) -> Tensor:
    largest = gradient.abs().amax((1, 2, 3), keepdim=True)
    return size * gradient / largest.clamp_min(torch.finfo(gradient.dtype).tiny)
