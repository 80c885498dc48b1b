"""Flows between neighbouring pixels, and noise on them."""

import torch
from torch import Tensor
from torch.nn import functional as F

from wotlab._base import checks, draws
from wotlab._base.precision import wide


def flow(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    r"""Let mass flow between neighbouring pixels: (B, C, H, W). Differentiable in all three.

    .. math:: z_{rc} = x_{rc} + \mathtt{down}_{r-1,c} - \mathtt{down}_{rc}
        + \mathtt{right}_{r,c-1} - \mathtt{right}_{rc}

    Parameters
    ----------
    x : Tensor (B, C, H, W)
    down : Tensor (B, C, H - 1, W)
        What flows from each pixel to the one below it, backwards where negative: the vertical part
        of a local flow plan (Levine and Feizi, 2020), in units of brightness.
    right : Tensor (B, C, H, W - 1)
        What flows to the pixel on the right.

    Returns
    -------
    Tensor (B, C, H, W)
        Each channel keeps its mass. Values may leave [0, 1]; a flow may also pass a pixel that
        holds less than what flows through it.

    Raises
    ------
    ValueError
        For flows of another shape, dtype or device than those of x ask for.

    Notes
    -----
    **Transport is the shortest flow.** For the ground cost :math:`\lVert i - j\rVert_1`,

    .. math:: W(x, z)\, \lVert x\rVert_1 = \min\, \bigl\{\lVert\mathtt{down}\rVert_1
        + \lVert\mathtt{right}\rVert_1 : \mathtt{flow}(x, \mathtt{down}, \mathtt{right})
        = z\bigr\}.

    A plan gives a flow of at most its cost, since a move from i to j can take a path of
    :math:`\lVert i - j\rVert_1` steps. Conversely a flow is a sum of paths, from pixels that lose
    mass to pixels that gain it, and of cycles. Each path is at least as long as the distance
    between its ends, so the plan that goes straight from end to end costs no more.

    Examples
    --------
    >>> import torch
    >>> from wotlab import smoothing
    >>> x = torch.tensor([[[[1.0, 0.0, 0.0]]]])
    >>> right = torch.tensor([[[[0.5, 0.25]]]])  # half of it by a step, half of that by another
    >>> smoothing.flow(x, torch.zeros(1, 1, 0, 3), right)
    tensor([[[[0.5000, 0.2500, 0.2500]]]])
    """
    checks.tensor("x", x, 4, "(B, C, H, W)")
    for name, part, like in (("down", down, x[:, :, 1:]), ("right", right, x[..., 1:])):
        checks.instance(name, part, Tensor)
        checks.same_shape(name, part, "the neighbours in x", like)
    return x - F.pad(down, (0, 0, 1, 1)).diff(dim=2) - F.pad(right, (1, 1)).diff(dim=3)


def noisy(x: Tensor, sigma: float, *, generator: torch.Generator | None = None) -> Tensor:
    r"""Laplace noise on all flows between neighbouring pixels (Levine and Feizi, 2020).

    .. math:: z = \mathtt{flow}(x, \mathtt{down}, \mathtt{right}), \quad
        \mathtt{down}, \mathtt{right} \sim \lVert x\rVert_1\,
        \mathrm{Laplace}\bigl(0, \sigma / \sqrt2\bigr) \text{ independently}

    The noise of `certify`, and of the training before it.

    Parameters
    ----------
    x : Tensor (B, C, H, W)
        Images in [0, 1].
    sigma : float > 0
        Deviation of each flow as a share of the image's mass: in pixels of distance for mass 1,
        the unit of `WassersteinBall`. The authors' networks for MNIST learned with 0.005 to 0.5.
    generator : torch.Generator, optional

    Returns
    -------
    Tensor (B, C, H, W)
        Not clamped: a pixel inside the image gets noise of the deviation
        :math:`2 \sigma \lVert x\rVert_1`, which is 2 for a digit of mass 100 and sigma = 0.01.
        A black image stays black.

    Raises
    ------
    ValueError
        For bad x, sigma <= 0, or a generator that is none.

    Notes
    -----
    Each image gets its own noise. In the training code that the authors published one draw serves
    a whole minibatch; the paper does not ask for that.

    Examples
    --------
    >>> import torch
    >>> from wotlab import smoothing
    >>> x = torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(0)).double()
    >>> z = smoothing.noisy(x, 0.01, generator=torch.Generator().manual_seed(1))
    >>> round(float((z - x).std() / x.sum()), 2), float((z - x).sum().abs()) < 1e-9
    (0.02, True)
    """
    checks.images("x", x, black=True)
    checks.positive("sigma", sigma)
    return disturbed(x, sigma, generator)


def disturbed(x: Tensor, sigma: float, generator: torch.Generator | None) -> Tensor:
    """What `noisy` gives, of images that were looked at before."""
    total = x.sum((1, 2, 3), keepdim=True, dtype=wide(x.device))
    scale = (sigma / 2**0.5 * total).to(x.dtype)
    down, right = (scale * draws.laplace(part, generator) for part in (x[:, :, 1:], x[..., 1:]))
    return flow(x, down, right)
