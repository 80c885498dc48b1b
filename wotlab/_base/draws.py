"""Random numbers for images that may lie on another device than the generator."""

from collections.abc import Callable

import torch
from torch import Tensor

from wotlab._base import checks

Generator = torch.Generator | None


def uniform(like: Tensor, generator: Generator = None) -> Tensor:
    """Uniform on [0, 1), in the shape, dtype and place of `like`."""
    return _drawn(torch.rand, like, generator)


def normal(like: Tensor, generator: Generator = None) -> Tensor:
    """Standard normal, in the shape, dtype and place of `like`."""
    return _drawn(torch.randn, like, generator)


def laplace(like: Tensor, generator: Generator = None) -> Tensor:
    """Laplace of scale 1, in the shape, dtype and place of `like`."""
    both = 2 * uniform(like, generator)  # the whole part is a side, the rest is uniform on [0, 1)
    return -(2 * both.floor() - 1) * torch.log1p(-both.frac())


def check(generator: Generator) -> None:
    """A random generator, or none."""
    if generator is not None:
        checks.instance("generator", generator, torch.Generator)


def _drawn(draw: Callable[..., Tensor], like: Tensor, generator: Generator) -> Tensor:
    check(generator)
    place = like.device if generator is None else generator.device
    made = draw(like.shape, generator=generator, dtype=like.dtype, device=place)
    return made.to(like.device)
