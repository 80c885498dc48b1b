"""Images that are sampled elsewhere: flows of pixels, and random affine changes."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from wotlab import checks, draws


def warp(x: Tensor, flow: Tensor) -> Tensor:
    r"""z(s) = x(s + flow(s)), bilinearly: (B, C, H, W). Differentiable in both.

    Parameters
    ----------
    x : Tensor (B, C, H, W)
    flow : Tensor (B, 2, H, W)
        In pixels, down and to the right. Outside the image its border goes on.

    Raises
    ------
    ValueError
        For a flow of another shape.
    """
    count, _, height, width = x.shape
    if flow.shape != (count, 2, height, width):
        raise ValueError(
            f"flow must be {(count, 2, height, width)} for these images; got {tuple(flow.shape)}"
        )
    rows = torch.arange(height, dtype=x.dtype, device=x.device)[:, None] + flow[:, 0]
    columns = torch.arange(width, dtype=x.dtype, device=x.device) + flow[:, 1]
    # grid_sample's corners are -1 and 1, columns first
    grid = torch.stack([2 * columns / max(width - 1, 1), 2 * rows / max(height - 1, 1)], 3) - 1
    return F.grid_sample(x, grid, padding_mode="border", align_corners=True)


def compose(flow: Tensor, then: Tensor) -> Tensor:
    r"""The flow of warping by `flow` first and the result by `then`: then(s) + flow(s + then(s)).

    So an image that is warped many times is sampled once, and does not blur.
    """
    return then + warp(flow, then)


def roughness(flow: Tensor) -> Tensor:
    r"""sum_s sqrt(|flow(s) - flow(s + down)|^2 + |flow(s) - flow(s + right)|^2): (B,), pixels.

    The flow loss of stAdv (Xiao et al., 2018, equation 4) with each pair of neighbours counted
    once and one root a pixel. 0 for a flow that is the same everywhere; the root is smoothed by
    1e-6 of a pixel, where it would have no gradient.
    """
    down = F.pad(flow.diff(dim=2), (0, 0, 0, 1))
    right = F.pad(flow.diff(dim=3), (0, 1))
    square = down.square().sum(1) + right.square().sum(1)
    return ((square + 1e-12).sqrt() - 1e-6).sum((1, 2))


@dataclass(frozen=True)
class Transformations:
    """Random changes of an image: turned, shifted, scaled, with noise; each image its own draw.

    Parameters
    ----------
    rotation : float >= 0
        Degrees, to either side.
    translation : float in [0, 1]
        Share of the image's height and width, in either direction.
    scaling : float in [0, 1)
        The image is scaled by a factor from 1 - scaling to 1 + scaling.
    noise : float >= 0
        Deviation of Gaussian noise, in brightness.

    Raises
    ------
    ValueError
        For a number out of range.

    Notes
    -----
    All but the noise are uniform. What comes in from outside is black. Values are clamped to
    [0, 1]. Athalye et al. (2018) use wider ranges for objects that are photographed.
    """

    rotation: float = 15.0
    translation: float = 0.05
    scaling: float = 0.1
    noise: float = 0.02

    def __post_init__(self):
        for name in ("rotation", "translation", "scaling", "noise"):
            checks.positive(name, getattr(self, name), zero=True)
        if self.translation > 1 or self.scaling >= 1:
            raise ValueError(
                f"translation must be at most 1 and scaling below 1; got {self.translation} and "
                f"{self.scaling}"
            )

    def __call__(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Images (B, C, H, W), each changed at random; differentiable."""
        turn, down, right, scale = 2 * draws.uniform(z.new_empty(4, len(z)), generator) - 1
        angle, factor = turn * math.radians(self.rotation), 1 / (1 + scale * self.scaling)
        height, width = z.shape[-2:]
        cos, sin, zero = angle.cos() * factor, angle.sin() * factor, 2 * self.translation
        theta = torch.stack([
            torch.stack([cos, -sin * height / width, zero * right], 1),
            torch.stack([sin * width / height, cos, zero * down], 1),
        ], 1)  # fmt: skip
        grid = F.affine_grid(theta, z.shape, align_corners=False)
        moved = F.grid_sample(z, grid, align_corners=False)
        return (moved + self.noise * draws.normal(z, generator)).clamp(0, 1)
