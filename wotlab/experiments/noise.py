"""The two kinds of noise that smooth a network: what the network sees, and what is proven by it."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from wotlab import smoothing
from wotlab.smoothing import Smoothed


@dataclass(frozen=True)
class Flows:
    """Noise on flows, of deviation `scale`; `samples` are those of `smoothing.certify`."""

    name: ClassVar[str] = "flows"
    stepwise: ClassVar[bool] = False  # whether what is shown is a step function of the image

    scale: float
    samples: tuple[int, int] = (100, 10_000)

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return smoothing.noisy(x, self.scale, generator=generator)

    def certify(self, model: nn.Module, x: Tensor) -> Smoothed:
        """Radii in the units of `WassersteinBall`, from the same noise in each call."""
        noise = torch.Generator(x.device).manual_seed(0)
        return smoothing.certify(
            model, x, sigma=self.scale, samples=self.samples, generator=noise
        )  # fmt: skip


@dataclass(frozen=True)
class Splitting:
    """Splitting noise, whose thresholds are 2 * `scale` apart."""

    name: ClassVar[str] = "splitting"
    stepwise: ClassVar[bool] = True

    scale: float

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return smoothing.noisy_l1(x, self.scale, generator=generator)

    def certify(self, model: nn.Module, x: Tensor) -> Smoothed:
        """Radii in the units of `WassersteinBall`, without chance."""
        found = smoothing.certify_l1(model, x, lam=self.scale)
        return Smoothed(found.prediction, smoothing.wasserstein_radius(found.radius, x))


Noise = Flows | Splitting
