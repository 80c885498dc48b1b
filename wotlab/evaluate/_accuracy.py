"""Accuracy on clean images, and under an attack as its budget grows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from wotlab._base import checks
from wotlab._base.dataset import as_dataset
from wotlab._base.modes import eval_mode
from wotlab._base.networks import logits_of
from wotlab.attacks import Attack, AttackResult
from wotlab.balls import Ball
from wotlab.evaluate._shares import Share, share


def accuracy(
    model: nn.Module,
    data: Dataset | tuple[Tensor, Tensor],
    *,
    batch_size: int = 500,
    progress: bool = False,
) -> Share:
    """Share of images that `model` classifies correctly.

    Parameters
    ----------
    model : nn.Module
        Takes images in [0, 1], returns logits. Used on its own device, in its own dtype and in
        eval mode; afterwards every module of it is in the mode that it was in.
    data : Dataset of (image, label), or a pair of tensors (images, labels)
        Labels are class numbers: integers of any dtype, one per image.
    batch_size : int
    progress : bool
        Show a progress bar.

    Returns
    -------
    Share
        Prints as "97.2% (96.4% to 97.8%), 1748 of 1797"; `float` gives its value.

    Raises
    ------
    ValueError
        For no images; for labels that are missing, that are no integers of shape (N,), or that
        the model has no class for; for outputs that are not (B, classes) or hold NaN.

    Examples
    --------
    >>> from wotlab import data, evaluate, models
    >>> model = models.load("digits-standard").double()
    >>> print(evaluate.accuracy(model, data.load("digits")))
    91.6% (87.9% to 94.2%), 272 of 297
    """
    data, right = as_dataset(data), 0
    checks.count("batch_size", batch_size)
    with eval_mode(model):
        for x, y in tqdm(DataLoader(data, batch_size), disable=not progress, leave=False):
            right += int(_right(model, x, y).sum())
    return share(right, len(data))


def are_right(model: nn.Module, x: Tensor, y: Tensor, *, batch_size: int = 500) -> Tensor:
    """Which images `model` classifies correctly.

    Parameters
    ----------
    model, batch_size
        As for `accuracy`.
    x, y : Tensor
        Images (N, C, H, W) and labels (N,).

    Returns
    -------
    Tensor, booleans (N,)
        On the device of y.

    Raises
    ------
    ValueError
        As `accuracy` does.

    Examples
    --------
    >>> from wotlab import data, evaluate, models
    >>> x, y = data.load("digits").tensors(slice(50, 56))
    >>> evaluate.are_right(models.load("digits-standard").double(), x.double(), y)
    tensor([ True, False, False, False,  True,  True])
    """
    _check(x, y)
    checks.count("batch_size", batch_size)
    if not len(x):
        raise ValueError("x holds no images")
    with eval_mode(model):
        parts = zip(x.split(batch_size), y.split(batch_size), strict=True)
        return torch.cat([_right(model, *part) for part in parts])


def _right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The same for one minibatch, of a model in eval mode."""
    _check(x, y)
    logits = logits_of(model, x.to(next(model.parameters(), x).device))
    classes = checks.logits(logits, x)
    if bool(logits.isnan().any()):
        raise ValueError("model returns NaN; check its weights and the images' range")
    checks.classes(y, classes)
    return logits.argmax(1).to(y.device) == y


def _check(x: Tensor, y: Tensor) -> None:
    """Images, one class number each. Labels (B, 1) would be compared with every prediction."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"images must be floating-point tensors in [0, 1]; got {kind}")
    if not checks.are_integers(y) or y.shape != (len(x),):
        found = f"{tuple(y.shape)} of {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(
            f"labels must be class numbers, integers of shape ({len(x)},), one per image; "
            f"got {found}"
        )


@dataclass(frozen=True)
class Curve:
    """Accuracy over the budget.

    Attributes
    ----------
    eps : tuple of float
        Ascending.
    shares : tuple of Share
        Accuracy at each eps, with its interval.
    left : tuple of Tensor, booleans (N,)
        Which images still stand at each eps.

    Examples
    --------
    >>> from functools import partial
    >>> from wotlab import LinfBall, attacks, data, evaluate, models
    >>> model = models.load("digits-standard").double()
    >>> x, y = data.load("digits").tensors(slice(20))
    >>> pgd, eps = partial(attacks.pgd, steps=10), [0, 0.1, 0.3]
    >>> curve = evaluate.accuracy_curve(model, x.double(), y, pgd, LinfBall(0), eps)
    >>> curve.eps, [int(stands.sum()) for stands in curve.left]
    ((0, 0.1, 0.3), [20, 12, 0])
    """

    eps: tuple[float, ...]
    shares: tuple[Share, ...]
    left: tuple[Tensor, ...]

    def __str__(self) -> str:
        return "\n".join(
            f"eps {e:g}: {each}" for e, each in zip(self.eps, self.shares, strict=True)
        )


def accuracy_curve(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    ball: Ball,
    eps: Sequence[float],
    *,
    progress: bool = False,
) -> Curve:
    """Share of images that no attack of the budget breaks, for each budget.

    Balls are nested, so an image that breaks at one eps is broken at every larger one: each
    budget is tried on what the last one left, and the curve can only fall.

    Parameters
    ----------
    model : nn.Module
        Images in [0, 1] to logits.
    x, y : Tensor
        Images (N, C, H, W) and true labels (N,), on the model's device.
    attack : attack
        Called as `attack(model, x, y, ball)`; bind its options with functools.partial.
    ball : LinfBall, L2Ball, WassersteinBall or InternalWassersteinBall
        Its eps is replaced.
    eps : sequence of float >= 0
    progress : bool

    Returns
    -------
    Curve

    Raises
    ------
    ValueError
        For no eps, or one that is negative; for what is no attack or no ball; for an attack that
        returns several results an image; as `accuracy` and the attack do.

    Examples
    --------
    >>> from functools import partial
    >>> from wotlab import LinfBall, attacks, data, evaluate, models
    >>> model = models.load("digits-pgd-10").double()
    >>> x, y = data.load("digits").tensors(slice(20))
    >>> pgd, eps = partial(attacks.pgd, steps=10), [0, 0.1, 0.3]
    >>> curve = evaluate.accuracy_curve(model, x.double(), y, pgd, LinfBall(0), eps)
    >>> [share.count for share in curve.shares]  # of 20
    [15, 14, 0]
    """
    Ball.require(ball, "a threat model, such as LinfBall(0.1)")
    eps, left = rising(eps), []
    standing = are_right(model, x, y)
    for value in tqdm(eps, disable=not progress, leave=False):
        standing = standing.clone()
        at = standing.nonzero()[:, 0]
        if len(at):
            done = attacked(attack, model, x[at], y[at], replace(ball, eps=value))
            if len(done.success) != len(at):
                raise ValueError(
                    f"attack must return one result an image; got {len(done.success)} for "
                    f"{len(at)} (of iwda take samples=1)"
                )
            standing[at[done.success]] = False
        left.append(standing)
    return Curve(eps, tuple(share(int(each.sum()), len(x)) for each in left), tuple(left))


def rising(eps: Sequence[float]) -> tuple[float, ...]:
    """Budgets, the smallest first."""
    if np.ndim(eps) != 1 or not len(eps):
        raise ValueError(f"eps must be a list of budgets, such as [0.1]; got {checks.found(eps)}")
    for value in eps:
        checks.positive("eps", value, zero=True)
    return tuple(sorted(eps))


def attacked(attack: Attack, model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> AttackResult:
    """What an attack returns; ValueError for what is no attack."""
    checks.function("attack", attack, "functools.partial(wotlab.attacks.pgd, steps=20)")
    done = attack(model, x, y, ball)
    checks.instance("what attack returns", done, AttackResult)
    return done


def success_rate(
    model: nn.Module, x: Tensor, y: Tensor, done: AttackResult, *, targeted: bool = False
) -> Share:
    """Share of images that an attack broke, of those that were not broken before it.

    Parameters
    ----------
    model, x, y
        As given to the attack; targeted, y are the classes to reach.
    done : AttackResult
        What it returned. Its own `success` also holds the images that the model misread from the
        start; here they count neither as successes nor as images.
    targeted : bool

    Returns
    -------
    Share
        Its `total` says how many images there were to break.

    Raises
    ------
    ValueError
        For what is no result, or one of another number of images; where nothing was left to
        break; as `accuracy` does.

    Examples
    --------
    >>> from wotlab import LinfBall, attacks, data, evaluate, models
    >>> model = models.load("digits-standard").double()
    >>> x, y = data.load("digits").tensors(slice(40, 60))
    >>> done = attacks.pgd(model, x.double(), y, LinfBall(0.3))
    >>> print(evaluate.success_rate(model, x.double(), y, done))  # of 20
    100.0% (81.6% to 100.0%), 17 of 17
    """
    checks.instance("done", done, AttackResult)
    if len(done.success) != len(x):
        raise ValueError(f"done must be a result for {len(x)} images; got {len(done.success)}")
    standing = are_right(model, x, y) != targeted
    if not bool(standing.any()):
        raise ValueError(
            f"x holds no image to break: all {len(x)} are "
            f"{'the target' if targeted else 'misread'} from the start"
        )
    return share(int(done.success[standing].sum()), int(standing.sum()))
