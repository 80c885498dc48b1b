"""How far a smoothed prediction holds, and what that is in the units of a Wasserstein ball."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from wotlab._base import checks
from wotlab._base.precision import wide
from wotlab.ot import GroundCost


def laplace_radius(share: float, sigma: float) -> float:
    r"""How far a class keeps the majority under Laplace noise, in the l1 distance.

    .. math:: r = b \log\frac{1}{2 (1 - \mathtt{share})}, \quad b = \frac{\sigma}{\sqrt2}

    Parameters
    ----------
    share : float in [0, 1]
        How often the class is given under noise, or a lower bound of it.
    sigma : float > 0
        Deviation of the noise, in units of the distance.

    Returns
    -------
    float
        0 for a share of one half or less, infinity for 1.

    Raises
    ------
    ValueError
        For a share outside [0, 1], or sigma <= 0.

    Notes
    -----
    **It holds.** The noise has the density :math:`\prod_k e^{-\lvert\xi_k\rvert / b} / 2b`, and a
    shift by d multiplies it nowhere by more than :math:`e^{\lVert d\rVert_1 / b}`. So the
    probability of all other classes together grows at most to
    :math:`e^{\lVert d\rVert_1 / b} (1 - \mathtt{share})`, which is below one half for
    :math:`\lVert d\rVert_1 < r`.

    **It is tight.** Let the class be given where the first coordinate is at most r. That has the
    probability :math:`1 - e^{-r / b} / 2 = \mathtt{share}`, and after a shift by r along the first
    axis one half.

    Levine and Feizi (2020) use :math:`\tfrac b2 \log\bigl(\mathtt{share} / (1 -
    \mathtt{share})\bigr)`, after Lecuyer et al. (2019). It compares two bounds of which only one is
    needed when all other classes are counted together, and is never larger: half as large for
    shares near 1. The form here is that of Teng et al. (2020) for two classes.

    Examples
    --------
    >>> import math
    >>> from wotlab import smoothing
    >>> round(smoothing.laplace_radius(0.99, math.sqrt(2)), 3)  # b = 1
    3.912
    >>> round(math.log(0.99 / 0.01) / 2, 3)  # as published
    2.298
    """
    checks.share("share", share)
    checks.positive("sigma", sigma)
    if share == 1:
        return math.inf
    return max(0.0, -sigma / math.sqrt(2) * math.log(2 * (1 - share)))


def flow_rate(ground_cost: GroundCost, height: int, width: int) -> float:
    r"""What a unit of flow between neighbours costs at least: the price of a step.

    .. math:: \min_{d \ne 0}\, \frac{C(d)}{\lVert d\rVert_1}

    Parameters
    ----------
    ground_cost : GroundCost
        Its window does not matter: the distance is that of the whole grid.
    height, width : int >= 1
        Of the images.

    Returns
    -------
    float
        1 for the l1 norm and p >= 1; :math:`1 / \sqrt2` for the l2 norm and p = 1 on any grid with
        a diagonal step.

    Raises
    ------
    ValueError
        For something that is no GroundCost, or sizes that are no positive integers.

    Notes
    -----
    Let :math:`W_1` be the distance of the ground cost :math:`\lVert i - j\rVert_1`. Every move
    costs at least the rate times its length in that norm, hence :math:`W \ge \mathtt{rate}\,
    W_1`, and the ball of W with radius rate * r lies in the ball of :math:`W_1` with radius r.
    A move along the d of the minimum makes both equal. For the l2 norm this reads
    :math:`W \le W_1 \le \sqrt2\, W`, and it is the second of these that a proof needs.

    Examples
    --------
    >>> from wotlab import GroundCost, smoothing
    >>> round(smoothing.flow_rate(GroundCost(), 28, 28), 4)
    0.7071
    >>> smoothing.flow_rate(GroundCost(norm=1), 28, 28)
    1.0
    """
    checks.instance("ground_cost", ground_cost, GroundCost)
    checks.count("height", height)
    checks.count("width", width)
    whole = replace(ground_cost, window=None)
    length = whole.offsets(height, width).abs().sum(1)
    cost = whole.costs(height, width, dtype=torch.float64)
    moves = length > 0
    if not bool(moves.any()):  # one pixel: nothing can move
        return 1.0
    return float((cost[moves] / length[moves]).min())


def wasserstein_radius(radius: Tensor, x: Tensor) -> Tensor:
    r"""The Wasserstein ball around x that lies in the l1 ball of this radius.

    .. math:: \varepsilon = \frac{r}{2 \lVert x\rVert_1}

    Parameters
    ----------
    radius : Tensor (B,)
        Radii in the l1 distance, at least 0, in units of brightness summed over all pixels and
        channels.
    x : Tensor (B, C, H, W)
        Images in [0, 1].

    Returns
    -------
    Tensor (B,)
        In the units of `WassersteinBall`, for every `GroundCost`; infinite for a black image,
        which is alone in its ball.

    Raises
    ------
    ValueError
        For bad x, or radii of another shape, negative or not finite.

    Notes
    -----
    Two pixels are at least one pixel apart in both norms, so a unit of mass that moves costs at
    least 1, whatever p. A budget eps moves at most :math:`\varepsilon \lVert x\rVert_1`, and each
    unit changes two pixels by 1 or less: :math:`\lVert z - x\rVert_1 \le 2 \varepsilon
    \lVert x\rVert_1` in the whole ball. Mass that moves by one pixel makes both sides equal, so no
    larger ball fits. Wegel et al. (2021) use the same step. It forgets how far mass moves.

    Examples
    --------
    >>> import torch
    >>> from wotlab import smoothing
    >>> x = torch.full((1, 1, 2, 2), 0.5)  # of mass 2
    >>> smoothing.wasserstein_radius(torch.tensor([1.0]), x)
    tensor([0.2500])
    """
    mass = _mass("radius", radius, x)
    return torch.where(mass > 0, radius / (2 * mass), torch.inf)


def l1_radius(eps: Tensor, x: Tensor) -> Tensor:
    r"""The l1 ball around x that holds the Wasserstein ball of this radius.

    .. math:: r = 2 \varepsilon \lVert x\rVert_1

    Parameters
    ----------
    eps : Tensor (B,)
        Radii in the units of `WassersteinBall`, at least 0.
    x : Tensor (B, C, H, W)
        Images in [0, 1].

    Returns
    -------
    Tensor (B,)
        What a proof for the l1 distance must reach. See `wasserstein_radius`, its inverse.

    Raises
    ------
    ValueError
        As for `wasserstein_radius`.

    Examples
    --------
    >>> import torch
    >>> from wotlab import smoothing
    >>> smoothing.l1_radius(torch.tensor([0.25]), torch.full((1, 1, 2, 2), 0.5))
    tensor([1.])
    """
    return 2 * eps * _mass("eps", eps, x)


def _mass(name: str, radius: Tensor, x: Tensor) -> Tensor:
    """Of each image, once it is known that there is a radius for it."""
    checks.images("x", x, black=True)
    checks.tensor(name, radius, 1, "(B,)")
    if len(radius) != len(x) or bool((radius < 0).any()):
        raise ValueError(
            f"{name} must hold a number of at least 0 for each of {len(x)} images; got "
            f"{len(radius)}, the smallest of them {float(radius.min()):g}"
        )
    return x.sum((1, 2, 3), dtype=wide(x.device)).to(radius)
