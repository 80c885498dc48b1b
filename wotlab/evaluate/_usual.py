"""Threats that any image can be put to, without a word on its data set."""

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from wotlab import transformations
from wotlab._base import checks
from wotlab.balls import L2Ball, LinfBall, WassersteinBall
from wotlab.evaluate._threats import Threat

PIXELS = (1, 2, 3, 4, 5, 6)
DEGREES = tuple(range(5, 95, 5))
BLUR = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)


def blurred(x: Tensor, sigma: float) -> list[Tensor]:
    return [transformations.blur(x, sigma)]


def usual_threats(x: Tensor) -> dict[str, Threat]:
    """Threats for `matrix` that need nothing but the images' size.

    Searched by gradients, up to the largest change that there is: "linf" (largest change of a
    pixel), "l2" (Euclidean length of the change), "wasserstein" (mean distance in pixels that mass
    moves, up to four). Not searched: "shift" (by 1 to 6 pixels, to eight sides), "rotation" (by 5
    to 90 degrees, to both sides), "blur" (a Gaussian of deviation 0.25 to 3 pixels).

    Parameters
    ----------
    x : Tensor (B, C, H, W)
        The images, at least 8 pixels a side.

    Returns
    -------
    dict of Threat

    Raises
    ------
    ValueError
        For what is no batch of images, or smaller ones.

    Examples
    --------
    >>> from wotlab import data, evaluate
    >>> x, _ = data.load("digits").tensors(slice(2))
    >>> {name: threat.unit for name, threat in evaluate.usual_threats(x).items()}["wasserstein"]
    'pixels'
    """
    checks.images("x", x, black=True)
    least = min(x.shape[-2:])
    if least < 8:
        raise ValueError(f"x must be at least 8 pixels a side; got {tuple(x.shape)}")
    # a shift by half of the image, or a blur as wide, leaves nothing to read
    pixels = [k for k in PIXELS if k < least / 2]
    sigmas = [s for s in BLUR if math.ceil(4 * s) < least]
    natural: dict[str, tuple[Callable, Sequence[float], str]] = {
        "shift": (transformations.shifts, pixels, "pixels"),
        "rotation": (transformations.turns, DEGREES, "degrees"),
        "blur": (blurred, sigmas, "pixels"),
    }
    return {
        "linf": Threat.nearest(LinfBall(1.0)),
        "l2": Threat.nearest(L2Ball(x[0].numel() ** 0.5)),
        "wasserstein": Threat.nearest(WassersteinBall(4.0), "pixels"),
        **{name: Threat.natural(*how) for name, how in natural.items()},
    }
