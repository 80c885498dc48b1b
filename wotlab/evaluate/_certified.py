"""Proofs that no image of a Wasserstein ball changes a prediction: lower bounds beside attacks."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Tensor, nn
from tqdm.auto import tqdm

from wotlab._base import checks
from wotlab._base.modes import eval_mode
from wotlab._base.networks import check
from wotlab.balls import WassersteinBall
from wotlab.evaluate._slopes import Around, Bounds, Layers

Bound = Callable[[float], float]  # the margin that eps leaves at least
FIRST = 1 / 4096  # of its largest eps a radius is tried first


def certified_margin(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball: WassersteinBall,
    *,
    window: int | None = 5,
    progress: bool = False,
) -> Tensor:
    r"""Lower bound of each image's margin over its whole Wasserstein ball; above 0: certified.

    The margin is :math:`f_y(z) - \max_{t \ne y} f_t(z)`. Where the bound is positive, no image of
    the ball is misread, by any attack. Where it is not, nothing is said: `attacks.transport` may
    find one.

    Parameters
    ----------
    model : nn.Sequential
        Images in [0, 1] to logits: Conv2d, Linear, AvgPool2d, Flatten, with ReLU between them
        (Identity and Dropout are passed).
    x, y : Tensor
        Images (B, C, H, W) in [0, 1] and their labels (B,), on the model's device.
    ball : WassersteinBall
        Its budget and the cost of a move; its own window limits no distance.
    window : odd int or None
        Moves inside this many pixels a side around each pixel are told apart, by default of up to
        two pixels; all farther ones together count as one that costs as little as the nearest of
        them. None: none are. A larger one only makes the bound higher, and slower.
    progress : bool

    Returns
    -------
    Tensor (B,)
        In the dtype of x, computed in that of the model; at most the clean margin. Proven up to
        the rounding of that dtype, which is not followed up.

    Raises
    ------
    ValueError
        For another kind of network or of ball, an even window; for bad images, labels or logits.

    Notes
    -----
    **Slopes.** Let :math:`z = x + \sum_{ij} \pi_{ij} (e_j - e_i)` be reached by moving mass, and
    :math:`h_0` what the image itself has in front of a ReLU, :math:`l \le h \le u` what it can
    have. Then :math:`\mathrm{relu}(h) - \mathrm{relu}(h_0) = d\,(h - h_0)`, where d lies in
    :math:`[0, u / (u - h_0)]` for :math:`h_0 \le 0 < u` and in :math:`[h_0 / (h_0 - l), 1]` for
    :math:`h_0 > 0 > l`; it is 0 or 1 where the ReLU cannot switch. So :math:`f_y - f_t` changes by

    .. math:: \sum_{ij} \pi_{ij} \langle g, w_j - w_i\rangle, \qquad
        g = D_1 W_2^\top D_2 \cdots D_{K-1} W_K^\top (e_y - e_t),

    where :math:`w_j` is column j of :math:`W_1` and :math:`D_k` holds the d of layer k: for each z
    a sum over the moves of its plan, with one g. Intervals, from the last layer to the first, hold
    every such g in [m - r, m + r], so a unit of mass from i to j changes the lead by at least
    :math:`s_{ij} = \langle m, w_j - w_i\rangle - \langle r, \lvert w_j - w_i\rvert\rangle`. The
    bounds l and u come the same way, layer by layer, a row for each neuron that may switch.

    **Transport.** The least :math:`\sum_{ij} \pi_{ij} s_{ij}` over the plans from x of cost at most
    :math:`\varepsilon \lVert x\rVert_1` is, by duality, at least, for any :math:`\psi \ge 0`,

    .. math:: \sum_i x_i \min_j\, (s_{ij} + \psi\, C_{ij}) - \psi\, \varepsilon \lVert x\rVert_1,

    concave in psi, and its maximum is sought. For a linear network the bound is the exact optimum,
    if no pixel is overfilled: z <= 1 is not asked for, so that the ball is a larger one.

    A relaxation as in Wong & Kolter (2018) or CROWN (Zhang et al., 2018) is linear in z, and adds
    up an offset for each ReLU that may switch, though all of them share one budget. Lines through
    h_0 have no offsets. (With all slopes of a ReLU that may switch in [0, 1] this is a bound of the
    gradient, as Fast-Lip of Weng et al., 2018.) In Wegel et al. (2021) the ball counts as that of
    :math:`\lVert z - x\rVert_1 \le 2 \varepsilon \lVert x\rVert_1`, where it is as expensive to
    cross the image as to go to the next pixel.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from wotlab import WassersteinBall, evaluate
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    >>> model[1].weight.data = torch.tensor([[4.0, 0.0, 0.0, 0.0], [0.0, 4.0, 0.0, 0.0]])
    >>> x = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    >>> evaluate.certified_margin(model, x, torch.tensor([0]), WassersteinBall(0.25))
    tensor([2.])
    """
    return _each(model, x, y, ball, window, progress, lambda bound: bound(ball.eps))


def certified_radius(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball: WassersteinBall | None = None,
    *,
    window: int | None = 5,
    steps: int = 5,
    progress: bool = False,
) -> Tensor:
    """The largest eps found at which `certified_margin` is positive: a lower bound beside `radius`.

    The distance of an image to the decision boundary lies between this and `attacks.radius`.

    Parameters
    ----------
    model, x, y, window, progress
        As for `certified_margin`.
    ball : WassersteinBall
        Its eps is the largest radius of interest; `WassersteinBall(4.0)` by default, as for
        `attacks.radius`.
    steps : int
        Halvings of the gap that is left: eps doubles while it is certified, beginning at a
        4096th of the largest, and then lies within 3 % of the largest that this bound certifies.

    Returns
    -------
    Tensor (B,)
        Each a radius that is certified itself; 0 where none was, or the clean image is misread.

    Raises
    ------
    ValueError
        As for `certified_margin`; for steps < 1.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from wotlab import WassersteinBall, evaluate
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    >>> model[1].weight.data = torch.tensor([[4.0, 0.0, 0.0, 0.0], [0.0, 4.0, 0.0, 0.0]])
    >>> x = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    >>> evaluate.certified_radius(model, x, torch.tensor([0]))
    tensor([0.4922])
    """
    ball = WassersteinBall(4.0) if ball is None else ball
    checks.count("steps", steps)
    return _each(
        model, x, y, ball, window, progress, lambda bound: _largest(bound, ball.eps, steps)
    )


def _largest(bound: Bound, most: float, steps: int) -> float:
    low, high = 0.0, most * FIRST
    while high <= most and bound(high) > 0:
        low, high = high, 2 * high
    if low == 0 and bound(0.0) <= 0:  # misread
        return 0.0
    for _ in range(steps if low < most else 0):
        middle = (low + min(high, most)) / 2
        low, high = (middle, high) if bound(middle) > 0 else (low, middle)
    return low


def _each(
    model: nn.Module, x: Tensor, y: Tensor, ball: WassersteinBall, window: int | None,
    progress: bool, ask: Callable[[Bound], float],
) -> Tensor:  # fmt: skip
    """What is asked of each image's bound: (B,)."""
    WassersteinBall.require(ball)
    cost = replace(ball.ground_cost, window=window)  # which checks it
    with eval_mode(model):
        check(model, x, y)
        layers, found = Layers(model, x.shape[1:], window), []
        for one, label in zip(tqdm(x, disable=not progress, leave=False), y, strict=True):
            around = Around(one.to(layers.first), layers, cost)
            found.append(ask(partial(_margin, around, int(label))))
    return x.new_tensor(found)


def _margin(around: Around, y: int, eps: float) -> float:
    """The least lead of the label's logit over any other, as far as it is proven."""
    layers, bounds = around.layers, Bounds(around, eps * float(around.x.sum()))
    last = len(layers.parts) - 1
    classes = layers.every(last)
    others = classes[classes != y]
    lead = bounds.outputs[y] - bounds.outputs[others]
    rows = layers.rows(last, classes[y]) - layers.rows(last, others)
    return float((lead + bounds.change(last, rows)[0]).min())
