"""Perturbations that nobody aimed: shifted, turned, blurred images, and how far they are."""

import math

import torch
from scipy.spatial import procrustes as disparity
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from wotlab import checks


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
    """
    checks.images("x", x)
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in [0, 1]; got {share!r}")
    sizes = torch.tensor([x.shape[-1], x.shape[-2]])
    draw = torch.rand(len(x), 2, generator=generator, device=_place(generator)).cpu()
    shifts = ((2 * draw - 1) * share * sizes).round().int().tolist()
    moved = [
        F.affine(image, angle=0.0, translate=shift, scale=1.0, shear=[0.0, 0.0])
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
        drawn from [-degrees, degrees], as in Subramanyam (2021). Neither paper says so; their
        accuracies do.
    generator : torch.Generator, optional

    Raises
    ------
    ValueError
        For bad images or a negative angle.
    """
    checks.images("x", x)
    checks.positive("degrees", degrees, zero=True)
    draw = 2 * torch.rand(len(x), generator=generator, device=_place(generator)).cpu() - 1
    angles = (degrees * (draw.sign() if exactly else draw)).tolist()
    turned = [
        F.rotate(image, angle, InterpolationMode.BILINEAR)
        for image, angle in zip(x, angles, strict=True)
    ]
    return torch.stack(turned)


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
    """
    checks.images("x", x)
    checks.positive("sigma", sigma)
    reach = math.ceil(4 * sigma)
    if reach >= min(x.shape[-2:]):
        raise ValueError(f"sigma must be below a quarter of the image's size; got {sigma!r}")
    return F.gaussian_blur(x, [2 * reach + 1] * 2, [sigma, sigma]).clamp(0, 1)


def procrustes(x: Tensor, z: Tensor) -> Tensor:
    """Procrustes dissimilarity of each pair, rows of an image taken as points: (B,).

    What is left of the squared difference of two matrices after shifting, scaling and rotating
    their rows as points of a W-dimensional space, in [0, 1] (Subramanyam, 2021, table VI). Its
    rotations are not those of the image.

    Raises
    ------
    ValueError
        For bad images, images of another shape, or one whose pixels are all the same.
    """
    checks.images("x", x)
    checks.images("z", z)
    checks.same_shape("z", z, "x", x)
    flat = [image.movedim(0, 1).flatten(1).double().cpu().numpy() for image in (*x, *z)]
    for image in flat:
        if image.std(axis=0).max() == 0:
            raise ValueError("x and z must not hold images whose rows are all the same")
    pairs = zip(flat[: len(x)], flat[len(x) :], strict=True)
    return torch.tensor([disparity(a, b)[2] for a, b in pairs], dtype=x.dtype, device=x.device)


def _place(generator: torch.Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device
