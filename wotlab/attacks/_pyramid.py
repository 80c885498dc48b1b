"""Small networks that change an image, coarse to fine: one pyramid an image, as in SinGAN."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wotlab._base import draws
from wotlab.iwd.game import GAIN, KERNEL, LEAK, WIDTH

SMALLEST = 8  # pixels, the shorter side of the coarsest scale


class Generators(nn.Module):
    """B networks, one an image: four convolutions from (image, noise) to a change of the image.

    Their parameters have the image as first dimension. The last convolution is zero at first, so
    that the change is, too.
    """

    def __init__(
        self, count: int, channels: int, width: int = WIDTH, *, like: Tensor,
        generator: torch.Generator | None = None,
    ):  # fmt: skip
        super().__init__()
        sizes = (3 * channels, width, width, width, channels)
        self.layers = len(sizes) - 1
        for k, (n, m) in enumerate(pairwise(sizes)):
            scale = 0 if k == self.layers - 1 else (2 / (n * KERNEL**2)) ** 0.5
            weight = draws.normal(like.new_empty(count, m, n, KERNEL, KERNEL), generator)
            setattr(self, f"weight{k}", nn.Parameter(scale * weight))
            setattr(self, f"bias{k}", nn.Parameter(like.new_zeros(count, m)))

    def forward(self, given: Tensor) -> Tensor:
        """(S, B, 3 C, H, W) to (S, B, C, H, W): S samples of each of B images."""
        count = given.shape[1]
        z = given.flatten(1, 2)
        for k in range(self.layers):
            weight, bias = getattr(self, f"weight{k}"), getattr(self, f"bias{k}")
            z = F.pad(z, [KERNEL // 2] * 4, mode="replicate")
            z = F.conv2d(z, weight.flatten(0, 1), bias.flatten(), groups=count)
            if k < self.layers - 1:
                z = F.leaky_relu(z, LEAK)
        return z.unflatten(1, (count, -1))


def scales(height: int, width: int, most: int, smallest: int = SMALLEST) -> list[tuple[int, int]]:
    """Sizes of the pyramid, coarse to fine, each twice the one before; at most `most` of them."""
    sizes = [(height, width)]
    while len(sizes) < most and min(sizes[0]) // 2 >= smallest:
        sizes.insert(0, (sizes[0][0] // 2, sizes[0][1] // 2))
    return sizes


def resize(z: Tensor, size: tuple[int, ...]) -> Tensor:
    """Images (..., C, H, W) at another size."""
    if z.shape[-2:] == size:
        return z
    flat = z.flatten(0, -4)
    resized = F.interpolate(flat, size=size, mode="bilinear", antialias=True)
    return resized.unflatten(0, z.shape[:-3])


def changed(
    net: Generators, x: Tensor, coarse: Tensor, generator: torch.Generator | None
) -> Tensor:
    """The change at this scale: that of the scale below, and what the network adds to it.

    x (B, C, H, W) is the image at this scale, coarse (S, B, C, H, W) the change so far.
    """
    seen = (x + coarse).clamp(0, 1)
    noise = draws.normal(coarse, generator)
    return coarse + GAIN * net(torch.cat([x.expand_as(coarse), seen, noise], 2))
