"""The strongest attack on the plan: mirror ascent, runs at other classes, then Frank-Wolfe."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from wotlab._base import checks
from wotlab._base.networks import logits_of
from wotlab.attacks._frank_wolfe import FrankWolfe
from wotlab.attacks._loop import Stage, attack, climbing, on_plans
from wotlab.attacks._mirror_ascent import Mirror
from wotlab.attacks._result import AttackResult
from wotlab.balls import WassersteinBall

NOISE = 3.0  # of a restart's scores, in the units of the step: enough to end in another plan


def transport(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball: WassersteinBall,
    *,
    targeted: bool = False,
    loss: str = "ce",
    steps: int = 100,
    step_size: float = 1.0,
    momentum: float = 0.75,
    restarts: int = 3,
    early_stop: bool = True,
    batch_size: int = 1000,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> AttackResult:
    r"""The strongest attack on the Wasserstein ball that we know; the one to use.

    First a run of mirror ascent (see `mirror_ascent`) with momentum. On images that it does not
    break follow `restarts` runs that climb the logit of one other class each, minus the label's:
    first the likeliest class on the clean image, then the next. A network that stops one way out
    often leaves another open. What still stands meets `frank_wolfe`, repaired, which breaks a few
    images that mirror ascent does not. Every iterate is feasible: mass and range hold to
    rounding, and the plan's cost is at most eps.

    Parameters
    ----------
    model, x, y, ball, targeted, loss, early_stop, batch_size, progress
        As for `mirror_ascent`.
    steps : int
        Gradients a run; the last one, Frank-Wolfe, whose steps shrink, takes twice as many. An
        image that never breaks takes steps * (restarts + 3) in all, 600 by default.
    step_size, momentum : float
        Measured on MNIST: a larger step saturates the scores and is stuck sooner.
    restarts : int >= 0
        Runs at other classes on what is left. Targeted, or when the classes are used up, they
        start from scores of Gaussian noise instead. 0 is the first run of mirror ascent alone,
        with no Frank-Wolfe behind it either: quick, and weaker.
    generator : torch.Generator, optional
        Of that noise.

    Returns
    -------
    AttackResult

    Raises
    ------
    ValueError
        As for `mirror_ascent`; for restarts < 0.
    """
    ball = on_plans(ball)
    checks.count("restarts", restarts, zero=True)

    def again(x: Tensor, y: Tensor) -> Iterator[Stage]:
        classes = _other_classes(model, x, y)
        for turn in range(restarts):
            aimed = not targeted and turn < classes.shape[1]
            noise = 0.0 if aimed else NOISE * step_size
            mirror = Mirror(ball, step_size, momentum, noise=noise, generator=generator)
            yield climbing(mirror, steps, aims=classes[:, turn] if aimed else None)
        yield climbing(FrankWolfe(ball), 2 * steps)

    first = climbing(Mirror(ball, step_size, momentum), steps)
    return attack(
        [first], model, x, y, ball, again=again if restarts else None, targeted=targeted,
        loss=loss, batch_size=batch_size, early_stop=early_stop, progress=progress,
    )  # fmt: skip


def _other_classes(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The other classes of each image, likeliest first: (B, classes - 1)."""
    order = logits_of(model, x).argsort(dim=1, descending=True)
    return order[order != y[:, None]].reshape(len(x), -1)
