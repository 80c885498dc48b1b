"""Images that are moved or sampled elsewhere: shifts, turns, blur, flows of pixels."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from wotlab._base import checks, draws

__all__ = [
    "Transformations",
    "blur",
    "compose",
    "procrustes",
    "rotate",
    "roughness",
    "shifts",
    "translate",
    "turns",
    "warp",
]


def warp(x: Tensor, flow: Tensor) -> Tensor:
    r"""Bend images by a flow, bilinearly: (B, C, H, W). Differentiable in both.

    .. math:: z(s) = x(s + \mathtt{flow}(s))

    Parameters
    ----------
    x : Tensor (B, C, H, W)
    flow : Tensor (B, 2, H, W)
        In pixels, down and to the right. Outside the image its border goes on.

    Raises
    ------
    ValueError
        For a flow of another shape.

    Examples
    --------
    >>> import torch
    >>> from wotlab import transformations
    >>> x = torch.tensor([[[[0.0, 1.0, 0.0]]]], dtype=torch.float64)
    >>> flow = torch.zeros(1, 2, 1, 3, dtype=torch.float64)
    >>> flow[:, 1] = 0.5  # each pixel looks half a pixel to its right
    >>> transformations.warp(x, flow)
    tensor([[[[0.5000, 0.5000, 0.0000]]]], dtype=torch.float64)
    """
    for name, value in (("x", x), ("flow", flow)):
        checks.instance(name, value, Tensor)
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
    r"""The flow of warping by `flow` first and the result by `then`.

    .. math:: s \mapsto \mathtt{then}(s) + \mathtt{flow}(s + \mathtt{then}(s))

    So an image that is warped many times is sampled once, and does not blur.

    Parameters
    ----------
    flow, then : Tensor (B, 2, H, W)
        As for `warp`.

    Examples
    --------
    >>> import torch
    >>> from wotlab import transformations
    >>> flow = torch.full((1, 2, 4, 4), 0.5)  # half a pixel, twice
    >>> bool((transformations.compose(flow, flow) == 1).all())
    True
    """
    return then + warp(flow, then)


def roughness(flow: Tensor) -> Tensor:
    r"""How much neighbouring pixels of a flow move apart: (B,), in pixels.

    .. math:: \sum_s \sqrt{\lVert f(s) - f(s + \mathrm{down})\rVert^2
        + \lVert f(s) - f(s + \mathrm{right})\rVert^2}

    The flow loss of stAdv (Xiao et al., 2018, equation 4) with each pair of neighbours counted
    once and one root a pixel. 0 for a flow that is the same everywhere; the root is smoothed by
    1e-6 of a pixel, where it would have no gradient.

    Parameters
    ----------
    flow : Tensor (B, 2, H, W)
        As for `warp`.

    Examples
    --------
    >>> import torch
    >>> from wotlab import transformations
    >>> flow = torch.zeros(1, 2, 4, 4, dtype=torch.float64)
    >>> flow[0, 0, 2:] = 1.0  # the lower half moves by one pixel
    >>> transformations.roughness(flow).round(decimals=3)  # of four pixels
    tensor([4.], dtype=torch.float64)
    """
    checks.instance("flow", flow, Tensor)
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

    Examples
    --------
    >>> import torch
    >>> from wotlab import data
    >>> from wotlab.transformations import Transformations
    >>> x, _ = data.load("digits").tensors(slice(4))
    >>> z = Transformations(rotation=30)(x, torch.Generator().manual_seed(0))
    >>> z.shape, bool(((z >= 0) & (z <= 1)).all())
    (torch.Size([4, 1, 8, 8]), True)
    """

    rotation: float = 15.0
    translation: float = 0.05
    scaling: float = 0.1
    noise: float = 0.02

    def __post_init__(self) -> None:
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
        grid = F.affine_grid(theta, list(z.shape), align_corners=False)
        moved = F.grid_sample(z, grid, align_corners=False)
        return (moved + self.noise * draws.normal(z, generator)).clamp(0, 1)


def translate(x: Tensor, share: float, *, generator: torch.Generator | None = None) -> Tensor:
    """Shift each image by whole pixels, up to `share` of its height and width; black moves in.

    Parameters
    ----------
    x : Tensor (B, C, H, W)
        Images in [0, 1].
    share : float in [0, 1]
        Each direction is drawn from [-share, share] of the size and rounded (Hu et al., 2020,
        tables 4 and 6, as their distances say).
    generator : torch.Generator, optional

    Raises
    ------
    ValueError
        For bad images, or a share outside [0, 1].

    Examples
    --------
    >>> import torch
    >>> from wotlab import transformations
    >>> x = torch.zeros(1, 1, 5, 5)
    >>> x[0, 0, 2, 2] = 1.0
    >>> one = torch.Generator().manual_seed(1)
    >>> z = transformations.translate(x, 0.2, generator=one)
    >>> z.sum(), (z[0, 0] == 1).nonzero().tolist()
    (tensor(1.), [[2, 3]])
    """
    from torchvision.transforms import functional as vision

    checks.images("x", x)
    checks.share("share", share)
    sizes = torch.tensor([x.shape[-1], x.shape[-2]])
    draw = draws.uniform(torch.empty(len(x), 2), generator)
    shifts = ((2 * draw - 1) * share * sizes).round().int().tolist()
    moved = [
        vision.affine(image, angle=0.0, translate=shift, scale=1.0, shear=[0.0, 0.0])
        for image, shift in zip(x, shifts, strict=True)
    ]
    return torch.stack(moved)


def rotate(
    x: Tensor, degrees: float, *, exactly: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    """Turn each image about its centre, bilinearly; corners become black.

    Parameters
    ----------
    x : Tensor (B, C, H, W)
        Images in [0, 1].
    degrees : float >= 0
    exactly : bool
        True: by `degrees` to one side or the other, as in Hu et al. (2020). False: by an angle
        drawn from [-degrees, degrees], as in Subramanyam (2022). Neither paper says so; their
        accuracies do.
    generator : torch.Generator, optional

    Raises
    ------
    ValueError
        For bad images or a negative angle.

    Examples
    --------
    >>> import torch
    >>> from wotlab import data, transformations
    >>> x, _ = data.load("digits").tensors(slice(1))
    >>> z = transformations.rotate(x.double(), 360)
    >>> bool(torch.allclose(z, x.double()))
    True
    """
    from torchvision.transforms import functional as vision

    checks.images("x", x)
    checks.positive("degrees", degrees, zero=True)
    draw = 2 * draws.uniform(torch.empty(len(x)), generator) - 1
    angles = (degrees * (draw.sign() if exactly else draw)).tolist()
    turned = [
        vision.rotate(image, angle, vision.InterpolationMode.BILINEAR)
        for image, angle in zip(x, angles, strict=True)
    ]
    return torch.stack(turned)


def shifts(x: Tensor, pixels: int) -> list[Tensor]:
    """The images moved by so many pixels to each of eight sides, where their border moves in.

    Parameters
    ----------
    x : Tensor (B, C, H, W)
        Images in [0, 1].
    pixels : int >= 1

    Raises
    ------
    ValueError
        For bad images, or what is no whole number of pixels.

    Examples
    --------
    >>> import torch
    >>> from wotlab import transformations
    >>> moved = transformations.shifts(torch.tensor([[[[0.0, 1.0]]]]), 1)
    >>> len(moved), moved[0].tolist(), moved[-1].tolist()
    (8, [[[[0.0, 0.0]]]], [[[[1.0, 1.0]]]])
    """
    checks.images("x", x, black=True)
    checks.count("pixels", pixels)
    wide, (height, width) = F.pad(x, (pixels,) * 4, mode="replicate"), x.shape[-2:]
    ways = [(a * pixels, b * pixels) for a in range(3) for b in range(3) if (a, b) != (1, 1)]
    return [wide[..., down:, right:][..., :height, :width] for down, right in ways]


def turns(x: Tensor, degrees: float) -> list[Tensor]:
    """The images turned about their centre to both sides, bilinearly; corners become black.

    Parameters
    ----------
    x : Tensor (B, C, H, W)
        Images in [0, 1].
    degrees : float > 0

    Raises
    ------
    ValueError
        For bad images, or an angle that is not positive.

    Examples
    --------
    >>> import torch
    >>> from wotlab import transformations
    >>> x = torch.tensor([[[[0.0, 1.0], [0.0, 0.0]]]])
    >>> [z[0, 0].tolist() for z in transformations.turns(x, 90)]
    [[[0.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 0.0]]]
    """
    from torchvision.transforms import functional as vision

    checks.images("x", x, black=True)
    checks.positive("degrees", degrees)
    how = vision.InterpolationMode.BILINEAR
    return [vision.rotate(x, angle, how) for angle in (-degrees, degrees)]


def blur(x: Tensor, sigma: float) -> Tensor:
    """Convolve with a Gaussian of deviation `sigma` pixels, cut off at four deviations.

    Parameters
    ----------
    x : Tensor (B, C, H, W)
        Images in [0, 1], higher and wider than four deviations.
    sigma : float > 0

    Raises
    ------
    ValueError
        For bad images, or a sigma that is not positive or too wide for them.

    Examples
    --------
    >>> import torch
    >>> from wotlab import transformations
    >>> x = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    >>> x[0, 0, 4, 4] = 1.0
    >>> transformations.blur(x, 0.5)[0, 0, 4].round(decimals=3)
    tensor([0.0000, 0.0000, 0.0000, 0.0840, 0.6190, 0.0840, 0.0000, 0.0000, 0.0000],
           dtype=torch.float64)
    """
    from torchvision.transforms import functional as vision

    checks.images("x", x)
    checks.positive("sigma", sigma)
    reach = math.ceil(4 * sigma)
    if reach >= min(x.shape[-2:]):
        raise ValueError(f"sigma must be below a quarter of the image's size; got {sigma!r}")
    return vision.gaussian_blur(x, [2 * reach + 1] * 2, [sigma, sigma]).clamp(0, 1)


def procrustes(x: Tensor, z: Tensor) -> Tensor:
    """Procrustes dissimilarity of each pair, rows of an image taken as points: (B,).

    What is left of the squared difference of two matrices after shifting, scaling and rotating
    their rows as points of a W-dimensional space, in [0, 1] (Subramanyam, 2022, table VI). Its
    rotations are not those of the image.

    Parameters
    ----------
    x, z : Tensor (B, C, H, W)
        Images in [0, 1].

    Raises
    ------
    ValueError
        For bad images, images of another shape, or one whose pixels are all the same.

    Examples
    --------
    >>> from wotlab import data, transformations
    >>> x, z = data.load("digits").tensors(slice(2))[0].double().split(1)
    >>> bool(transformations.procrustes(x, 0.5 * x) < 1e-9)  # scaling is free
    True
    >>> transformations.procrustes(x, z).round(decimals=3)
    tensor([0.4910], dtype=torch.float64)
    """
    from scipy.spatial import procrustes as disparity

    checks.image_pair(x=x, z=z)
    flat = [image.movedim(0, 1).flatten(1).double().cpu().numpy() for image in (*x, *z)]
    for image in flat:
        if image.std(axis=0).max() == 0:
            raise ValueError("x and z must not hold images whose rows are all the same")
    pairs = zip(flat[: len(x)], flat[len(x) :], strict=True)
    return torch.tensor([disparity(a, b)[2] for a, b in pairs], dtype=x.dtype, device=x.device)
