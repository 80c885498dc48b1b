"""Random numbers for images that may lie on another device than the generator."""

import torch
from torch import Tensor


def uniform(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Uniform on [0, 1), in the shape, dtype and place of `like`."""
    return _drawn(torch.rand, like, generator)


def normal(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal, in the shape, dtype and place of `like`."""
    return _drawn(torch.randn, like, generator)


def _drawn(draw, like: Tensor, generator: torch.Generator | None) -> Tensor:
    place = like.device if generator is None else generator.device
    made = draw(like.shape, generator=generator, dtype=like.dtype, device=place)
    return made.to(like.device)
