"""Images made against another network."""

import time
from typing import Any

from torch import Tensor, nn

from wotlab._base import checks
from wotlab._base.modes import eval_mode
from wotlab._base.networks import are_right, check
from wotlab._base.precision import full_precision
from wotlab.attacks._pgd import pgd
from wotlab.attacks._result import Attack, AttackResult, Best, join, judge
from wotlab.balls import Ball


def transfer(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    source: nn.Module,
    attack: Attack = pgd,
    **options: Any,
) -> AttackResult:
    r"""Attack `source`, and try the images on `model`, whose gradients are never asked for.

    Parameters
    ----------
    model, x, y, ball
        As for `pgd`.
    source : nn.Module
        A network for the same images, trained apart.
    attack : attack
        Made on `source`; `options` go to it. Images that break `source` early go no further:
        with `early_stop=False` they go deeper, and transfer better.

    Returns
    -------
    AttackResult
        `steps` are those taken on `source`.

    Raises
    ------
    ValueError
        As the attack does.

    Notes
    -----
    A network that breaks more often under another one's images than under its own gradients
    hides its gradients (`wotlab.evaluate.sanity`).

    Examples
    --------
    >>> from wotlab import LinfBall, attacks, data, models
    >>> model, source = (models.load(f"digits-standard{k}").double() for k in ("", "-4"))
    >>> x, y = data.load("digits").tensors(slice(20))
    >>> done = attacks.transfer(model, x.double(), y, LinfBall(0.15), source=source)
    >>> int(done.success.sum())
    7
    """
    checks.instance("source", source, nn.Module)
    checks.function("attack", attack, "functools.partial(wotlab.attacks.pgd, steps=20)")
    start = time.perf_counter()
    made = attack(source, x, y, ball, **options)
    with eval_mode(model):
        check(model, x, y)
    x = full_precision(x)
    best = Best(x)
    best.x_adv, best.steps = made.x_adv, made.steps
    best.misread = ~are_right(model, x, y)
    best.broken = best.misread | ~are_right(model, made.x_adv, y)
    return join([judge(x, best, made.cost, ball)], start, made)
