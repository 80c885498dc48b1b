"""Splitting noise, whose smoothed classifier is computed without chance: proofs for l1."""

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from wotlab._base import checks, draws
from wotlab._base.modes import eval_mode
from wotlab._base.precision import full_precision
from wotlab._base.votes import count_classes, votes
from wotlab.smoothing._sampling import Smoothed


def split(x: Tensor, place: Tensor, *, lam: float, levels: int = 255, seed: int = 0) -> Tensor:
    r"""Tell of each pixel only between which two thresholds it lies (Levine and Feizi, 2021).

    Pixel i has thresholds at a distance of :math:`2 \lambda`, at the values :math:`t + v_i` modulo
    :math:`2 \lambda`. Here :math:`t` is one number for all pixels and :math:`v_i` a multiple of
    1 / levels that is drawn once, by `seed`, and belongs to the classifier. The pixel becomes the
    centre of its interval, cut to [0, 1].

    Parameters
    ----------
    x : Tensor (B, C, H, W)
        Images in [0, 1].
    place : Tensor (B,)
        :math:`t / 2 \lambda`, in [0, 1).
    lam : float > 0
        Half the distance of thresholds. From 0.5 on a pixel meets at most one. A whole number of
        levels must fit into 2 * lam.
    levels : int >= 1
        Steps from black to white: 255 for images of 8 bits.
    seed : int
        Of the offsets.

    Returns
    -------
    Tensor (B, C, H, W)
        In [0, 1]. It depends on t by the intervals that pixels lie in, and by the multiple of
        1 / levels below t: the thresholds that are shown lie in the middle between two levels.

    Raises
    ------
    ValueError
        For bad x, places of another shape or outside [0, 1), lam <= 0 or not such a multiple, or
        levels that are no positive integer.

    Examples
    --------
    >>> import torch
    >>> from wotlab import smoothing
    >>> x = torch.tensor([[[[0.0, 0.25, 0.5, 1.0]]]])
    >>> smoothing.split(x, torch.tensor([0.6]), lam=0.5, levels=4)
    tensor([[[[0.3125, 0.1875, 0.4375, 0.8125]]]])
    """
    checks.images("x", x, black=True)
    count = period(lam, levels)
    checks.tensor("place", place, 1, "(B,)")
    if len(place) != len(x) or not bool(((place >= 0) & (place < 1)).all()):
        raise ValueError(f"place must hold {len(x)} numbers in [0, 1); got {place.tolist()}")
    return shown(x, place, count, levels, offsets(x, count, seed))


def noisy_l1(
    x: Tensor,
    lam: float,
    *,
    levels: int = 255,
    seed: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Splitting noise: `split` at a place that is drawn for each image.

    The noise of `certify_l1`, and of the training before it.

    Parameters
    ----------
    x, lam, levels, seed
        As for `split`.
    generator : torch.Generator, optional
        Of the places.

    Returns
    -------
    Tensor (B, C, H, W)
        In [0, 1].

    Raises
    ------
    ValueError
        As for `split`.

    Examples
    --------
    >>> import torch
    >>> from wotlab import smoothing
    >>> x = torch.full((1, 1, 28, 28), 0.9)
    >>> z = smoothing.noisy_l1(x, 2.0, generator=torch.Generator().manual_seed(0))
    >>> bool((z == 0.5).double().mean() > 0.6)  # most pixels tell nothing
    True
    """
    checks.images("x", x, black=True)
    count = period(lam, levels)
    place = draws.uniform(x[:, 0, 0, 0], generator)
    return shown(x, place, count, levels, offsets(x, count, seed))


def certify_l1(
    model: nn.Module,
    x: Tensor,
    *,
    lam: float,
    levels: int = 255,
    seed: int = 0,
    batch_size: int = 1000,
    progress: bool = False,
) -> Smoothed:
    r"""How far in l1 the classifier smoothed by splitting noise gives one class: no chance in it.

    .. math:: r = \lambda\, (p_A - p_B)

    where :math:`p_A, p_B` are the largest two shares of a class over all places t.

    Parameters
    ----------
    model : nn.Module
        Images to logits; it sees split images.
    x : Tensor (B, C, H, W)
        Images in [0, 1] on the levels 0, 1 / levels, ..., 1.
    lam, levels, seed
        As for `split`; those of the training.
    batch_size : int >= 1
        Split images that the network sees at a time, out of 2 * lam * levels of each image.
    progress : bool

    Returns
    -------
    Smoothed
        Its radius in units of brightness, summed over pixels and channels. `wasserstein_radius`
        turns it into one of the Wasserstein ball. It never abstains.

    Raises
    ------
    ValueError
        As for `split`; for images between levels, or a model that does not return logits.

    Notes
    -----
    **The shares are exact.** No threshold of t in (k, k + 1) / levels crosses a level, so all those
    t show x alike: one of them is asked for each k.

    **The radius holds.** Let t be uniform. A threshold of pixel i lies between :math:`x_i` and
    :math:`z_i` with a probability of at most :math:`\lvert x_i - z_i\rvert / 2 \lambda`, however
    the thresholds of different pixels depend on each other. So x and z are shown alike but for a
    share of :math:`\lVert x - z\rVert_1 / 2 \lambda`, in which the lead of A over B falls by 2 at
    most: it stays positive while :math:`\lVert x - z\rVert_1 < \lambda\, (p_A - p_B)`.

    The paper certifies against images on levels. Here t is continuous, and what is shown depends
    on the level below it, so that the shares of x stay those of a finite count and z may be any
    real image. The class of such a z is that of the largest share over all t.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from wotlab import smoothing
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    >>> model[1].weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> x = torch.tensor([[[[1.0, 0.0]]]])  # read by which pixel is brighter
    >>> found = smoothing.certify_l1(model, x, lam=0.5, levels=20)
    >>> found.prediction, found.radius
    (tensor([0]), tensor([0.5000]))
    >>> smoothing.wasserstein_radius(found.radius, x)
    tensor([0.2500])
    """
    checks.images("x", x, black=True)
    count = period(lam, levels)
    checks.count("batch_size", batch_size)
    off = float((x * levels - (x * levels).round()).abs().max())
    if off > 0.01:
        raise ValueError(
            f"x must lie on {levels} levels from 0 to 1; a pixel lies {off:.2g} steps beside one. "
            f"Pass (x * {levels}).round() / {levels}, or the levels of your images"
        )
    found, radii = [], []
    with eval_mode(model):
        classes, moved = count_classes(model, x), offsets(x, count, seed)
        places = (torch.arange(count, device=x.device) + 0.5).split(batch_size)
        for one in tqdm(full_precision(x).split(1), disable=not progress, leave=False):
            seen = torch.zeros(classes, dtype=torch.long, device=x.device)
            for few in places:
                z = shown(one, few.to(one) / count, count, levels, moved)
                seen += votes(model, z, classes)
            most, rival = seen.topk(2).values.tolist()
            found.append(int(seen.argmax()))  # the first one, where two are even
            radii.append((most - rival) / (2 * levels))
    return Smoothed(torch.tensor(found, device=x.device), x.new_tensor(radii))


def period(lam: float, levels: int) -> int:
    """Levels from one threshold of a pixel to the next."""
    checks.positive("lam", lam)
    checks.count("levels", levels)
    count = round(2 * lam * levels)
    if count < 1 or abs(count - 2 * lam * levels) > 1e-6 * count:
        raise ValueError(
            f"lam must make 2 * lam * levels a positive integer; got {lam} with {levels} levels. "
            f"The nearest is {max(count, 1) / (2 * levels)}"
        )
    return count


def offsets(x: Tensor, count: int, seed: int) -> Tensor:
    """The level at which the thresholds of each pixel begin: integers (C, H, W)."""
    checks.count("seed", seed, zero=True)
    drawn = torch.Generator().manual_seed(seed)
    return torch.randint(count, x.shape[1:], generator=drawn).to(x.device)


def shown(x: Tensor, place: Tensor, count: int, levels: int, moved: Tensor) -> Tensor:
    """What `split` gives; all in steps of a level until the end."""
    t = count * place[:, None, None, None]
    below = torch.remainder(t.floor() + moved, count)  # exact: whole numbers
    hidden = torch.ceil((levels * x - below - t.frac()) / count) - 1  # thresholds below, but one
    low = below + 0.5 + count * hidden
    return (low.clamp_min(0) + (low + count).clamp_max(levels)) / (2 * levels)
