"""Images made against another network."""

import time
from collections.abc import Callable

from torch import Tensor, nn

from wotlab.attacks._loop import Found
from wotlab.attacks._objective import are_right, attacked, check, wide
from wotlab.attacks._pgd import pgd
from wotlab.attacks._result import AttackResult, judge


def transfer(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball,
    *,
    source: nn.Module,
    attack: Callable[..., AttackResult] = pgd,
    **options,
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
    """
    start = time.perf_counter()
    made = attack(source, x, y, ball, **options)
    with attacked(model):
        check(model, x, y)
    x = wide(x)
    found = Found(x)
    found.x_adv, found.steps = made.x_adv, made.steps
    found.misread = ~are_right(model, x, y)
    found.broken = found.misread | ~are_right(model, made.x_adv, y)
    return judge(x, found, made.cost, ball, start)
