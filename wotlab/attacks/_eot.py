"""EOT: images that fool under random transformations too (Athalye et al., 2018)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wotlab._base import checks
from wotlab._base.networks import logits_of
from wotlab.attacks._objective import Objective
from wotlab.attacks._pgd import pgd
from wotlab.attacks._result import AttackResult
from wotlab.balls import Ball
from wotlab.transformations import Transformations


@dataclass(frozen=True, eq=False, kw_only=True)
class Expected(Objective):
    """The mean of the loss over random transformations, estimated anew at each gradient.

    `broken` is that of the image as it is.
    """

    transform: Callable[..., Tensor]
    samples: int
    generator: torch.Generator | None

    def at(self, z: Tensor) -> tuple[Tensor, Tensor]:
        drawn = (self.transform(z, self.generator) for _ in range(self.samples))
        losses = [super(Expected, self).at(moved)[0] for moved in drawn]
        with torch.no_grad():
            broken = self.broken(logits_of(self.model, z))
        return torch.stack(losses).mean(0), broken


def eot(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    transform: Callable[..., Tensor] | None = None,
    samples: int = 8,
    generator: torch.Generator | None = None,
    **options: Any,
) -> AttackResult:
    r"""Fool under random transformations t of the image: EOT (Athalye et al., 2018), by `pgd`.

    .. math:: \max_{z \in B_\varepsilon(x)}\ \mathbb{E}_t\, \ell(t(z), y)

    Parameters
    ----------
    model, x, y, ball
        As for `pgd`.
    transform : function of images and generator, optional
        One draw of t, differentiable; by default `wotlab.transformations.Transformations()`.
    samples : int
        Draws of t at each gradient. The mean of their gradients has the right expectation,
        whatever their number.
    generator : torch.Generator, optional
        Of all draws.
    options
        Of `pgd`. With `early_stop=False` the image goes on to fool under more transformations.

    Returns
    -------
    AttackResult
        `success` says that the image itself is misread. How often it is under transformations is
        for the caller to count.

    Raises
    ------
    ValueError
        As for `pgd`; for samples < 1.

    Examples
    --------
    >>> import torch
    >>> from wotlab import LinfBall, attacks, data, models
    >>> model = models.load("digits-standard").double()
    >>> x, y = data.load("digits").tensors(slice(4))
    >>> options = dict(samples=2, steps=10, generator=torch.Generator().manual_seed(0))
    >>> done = attacks.eot(model, x.double(), y, LinfBall(0.3), **options)
    >>> done.success
    tensor([True, True, True, True])
    """
    checks.count("samples", samples)

    transform = transform or Transformations()
    checks.function("transform", transform, "wotlab.transformations.Transformations()")
    expected = partial(Expected, transform=transform, samples=samples, generator=generator)
    return pgd(model, x, y, ball, generator=generator, objective=expected, **options)
