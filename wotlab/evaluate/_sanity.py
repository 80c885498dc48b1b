"""Can this claim be true? Checks that an evaluation of robustness must pass."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wotlab._base import checks, draws
from wotlab._base.modes import eval_mode
from wotlab._base.networks import are_probabilities, logits_of
from wotlab._base.precision import full_precision
from wotlab.attacks import Attack, Objective
from wotlab.balls import Ball
from wotlab.evaluate._accuracy import are_right, attacked
from wotlab.evaluate._shares import share

TRIALS = 20  # random images of the ball in the black-box check
FLAT = 0.1  # share of images whose gradient may be zero
SPENT = 0.95  # of eps that the median image moves which an attack does not break
MISSED = 0.01  # share of images that another attack may break alone; one image always may


@dataclass(frozen=True)
class Doubt:
    """One reason not to believe a number.

    Attributes
    ----------
    check : str
        "probabilities", "random model", "zero gradients", "short steps", "grey image",
        "not to chance", "black box" or "claim".
    says : str
        What was found, and what to do.

    Examples
    --------
    >>> from wotlab import evaluate
    >>> print(evaluate.Doubt("claim", "0.9 lies above what the attack leaves"))
    claim: 0.9 lies above what the attack leaves
    """

    check: str
    says: str

    def __str__(self) -> str:
        return f"{self.check}: {self.says}"


def sanity(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    ball: Ball,
    *,
    claim: float | None = None,
    others: dict[str, Attack] | None = None,
    far: float | None = None,
    generator: torch.Generator | None = None,
) -> list[Doubt]:
    r"""Reasons to doubt the accuracy that `attack` leaves on `ball`, in plain English.

    An empty list proves nothing; a full one proves that the evaluation, or the claim, is wrong.

    - *probabilities*: the model returns soft-max outputs, where gradients vanish.
    - *random model*: two calls in eval mode differ; the attack must average over them.
    - *zero gradients*: on more than a tenth of the images that are classified correctly the
      gradient is zero.
    - *short steps*: of the images that it does not break, the attack moves half by less than 0.95
      eps, as with k * step < eps and no random start. The median decides: one image that moves
      far would hide that the others do not, and one whose loss is largest inside the ball says
      nothing about the steps. (A network whose output is the same all over the ball, such as the
      mean on a ball that keeps the mass, raises this doubt too.)
    - *grey image*: on an l-infinity ball with eps >= 0.5 the grey image is in the ball of every
      image, so that no network can be more accurate than the most frequent label.
    - *not to chance*: where the ball is so large that it holds images of every class, the attack
      must leave no more than the most frequent label's share.
    - *black box*: random images of the ball, or an attack of `others`, break more than one image,
      and more than 1 % of them, that the attack does not.
    - *claim*: the claim lies above the 95 % interval of what this very attack leaves.

    Parameters
    ----------
    model : nn.Module
    x, y : Tensor
        Images (N, C, H, W) in [0, 1] and true labels (N,); a hundred will do.
    attack : attack
        The one behind the claim, called as `attack(model, x, y, ball)`.
    ball : LinfBall, L2Ball, WassersteinBall or InternalWassersteinBall
    claim : float in [0, 1], optional
        The accuracy that somebody states at this eps.
    others : dict of attacks by name, optional
        Attacks that should be weaker: without gradients (Square), or with another network's.
    far : float, optional
        An eps at which the ball holds images of all classes. For an l-infinity ball 1 (every
        image), for others the check is left out.
    generator : torch.Generator, optional
        Of the random images.

    Returns
    -------
    list of Doubt

    Raises
    ------
    ValueError
        For a claim out of range, for what is no attack or no ball; as `accuracy` and the attack
        do.

    Examples
    --------
    >>> from functools import partial
    >>> from wotlab import LinfBall, attacks, data, evaluate, models
    >>> x, y = data.load("digits").tensors(slice(50))
    >>> weak = partial(attacks.pgd, steps=2, step_size=0.001)
    >>> found = evaluate.sanity(models.load("digits-standard"), x, y, weak, LinfBall(0.3))
    >>> [doubt.check for doubt in found]
    ['short steps', 'not to chance', 'black box']
    """
    checks.tensor("x", x, 4, "(B, C, H, W)")
    Ball.require(ball, "a threat model, such as LinfBall(0.1)")
    checks.share("claim", claim or 0)
    checks.instance("others", others or {}, dict)
    doubts: list[Doubt] = []

    def doubt(reason: bool, check: str, says: str) -> None:
        if reason:
            doubts.append(Doubt(check, says))

    with eval_mode(model):
        logits = logits_of(model, x)
        same, soft = torch.equal(logits, logits_of(model, x)), are_probabilities(logits)
        doubt(
            not same, "random model",
            "two calls in eval mode differ. Fix its randomness, or attack the mean over many calls",
        )  # fmt: skip
        doubt(
            soft, "probabilities",
            "the model returns probabilities. Return the logits: behind a soft-max gradients "
            "vanish, and attacks fail for no merit of the network",
        )  # fmt: skip
        if soft:
            return doubts  # attacks refuse such a model
        right, y = are_right(model, x, y), y.long()
        odds, plain = _flat(model, x[right], y[right])
    doubt(
        odds > FLAT, "zero gradients",
        f"on {odds:.0%} of the images the gradient is exactly zero. Attack a smooth copy of "
        "the network, or use an attack without gradients",
    )  # fmt: skip
    doubt(
        odds <= FLAT < plain, "zero gradients",
        f"on {plain:.0%} of the images the gradient of the cross-entropy is exactly zero: p "
        "rounds to 1. The attacks here climb log((1 - p) / p), which is not flat there; those "
        "of other libraries may fail",
    )  # fmt: skip
    done = attacked(attack, model, x, y, ball)
    stands = right & ~done.success
    left, claimed = share(int(stands.sum()), len(x)), claim or 0.0
    doubt(claimed > left.high, "claim", f"{claimed:.1%} is claimed; this attack leaves {left}")
    most, stated = float(y.bincount().max()) / len(y), max(left.value, claimed)
    doubt(
        ball.eps >= (ball.whole or torch.inf) / 2 and stated > most, "grey image",
        f"at eps {ball.eps:g} the image that is 0.5 everywhere is in every ball, so that at "
        f"most {most:.1%} (the most frequent label) can stand; {stated:.1%} do. The attack "
        "misses images that exist",
    )  # fmt: skip
    if ball.eps > 0 and bool(stands.any()):
        moved = float(done.cost[stands].median()) / ball.eps
        doubt(
            moved < SPENT, "short steps",
            f"of the images that it does not break, the attack moves half by at most {moved:.0%} "
            "of eps. Take more or longer steps (steps * step size >= eps), or a random start",
        )  # fmt: skip
    far = ball.whole if far is None else far
    if far is not None:
        checks.positive("far", far, zero=True)
        at_far = attacked(attack, model, x, y, replace(ball, eps=far))
        left = share(int((right & ~at_far.success).sum()), len(x))
        doubt(
            left.low > most, "not to chance",
            f"at eps {far:g} the ball holds images of every class, and the attack leaves {left}; "
            f"at most {most:.1%} can stand. Gradients are masked, or the attack does not use its "
            "budget",
        )  # fmt: skip
    rivals = {"random images of the ball": _random(model, x, y, ball, generator)}
    for name, other in (others or {}).items():
        rivals[name] = attacked(other, model, x, y, ball).success
    for name, broken in rivals.items():
        missed = int((broken & stands).sum())
        doubt(
            missed > max(1, MISSED * len(x)), "black box",
            f"{name}: breaks {missed} images that the attack does not. Gradients are masked; trust "
            "neither number",
        )  # fmt: skip
    return doubts


def _flat(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """The share of images at which a loss is flat: that which attacks here climb, and others'."""
    if not len(x):
        return 0.0, 0.0

    def flat(loss: Callable[[Tensor], Tensor]) -> float:
        with torch.enable_grad():
            z = x.clone().requires_grad_()
            (g,) = torch.autograd.grad(loss(z).sum(), z)
        return float((g.flatten(1).abs().amax(1) == 0).double().mean())

    odds = flat(lambda z: Objective(model, y, False, "ce").value(z)[0])
    return odds, flat(lambda z: F.cross_entropy(logits_of(model, z), y, reduction="none"))


def _random(
    model: nn.Module, x: Tensor, y: Tensor, ball: Ball, generator: torch.Generator | None
) -> Tensor:
    """Which images break on the way to random black and white ones: booleans (N,).

    Every pixel is pushed as far as brightness goes, so that the projection ends near the ball's
    boundary whatever its distance: noise of a fixed size would stay deep inside a large ball.
    """
    x = full_precision(x)  # half precision cannot keep the mass
    broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    with eval_mode(model):
        for _ in range(TRIALS):
            noise = (draws.uniform(x, generator) - 0.5).sign()
            z = ball.project_roughly(x, x + noise)
            broken |= logits_of(model, z).argmax(1) != y
    return broken
