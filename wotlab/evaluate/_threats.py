"""Threat models: what may be done to an image, and how the least of it that breaks is found."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from wotlab import attacks
from wotlab._base import checks
from wotlab.attacks import Attack
from wotlab.balls import Ball
from wotlab.evaluate._accuracy import accuracy_curve, are_right, attacked, rising

Find = Callable[[nn.Module, Tensor, Tensor], Tensor]  # of model, images, labels: radii (B,)
Change = Callable[[Tensor, float], Sequence[Tensor]]  # of images and a size: changed images


@dataclass(frozen=True)
class Threat:
    r"""A way to change images, and a search for the least change that breaks each of them.

    The radius of an image is the smallest size of a change that has it misread, as far as the
    search finds one:

    .. math:: r(x) = \min \{d(x, z) : \mathrm{model}(z) \ne y\}

    It is 0 where the image is misread as it is, and infinite where nothing was found. The share of
    radii above eps is the accuracy at eps, for every eps at once.

    Make one by a class method: `nearest` for a ball in which `attacks.radius` searches, `on_grid`
    for any other attack with a budget, `once` for an attack without one, `natural` for changes
    that nobody searches for. `or_by` joins several searches of one threat, `also_by` tries another
    attack on what a search leaves.

    Parameters
    ----------
    find : function of model, images (B, C, H, W) and labels (B,)
        Returns the radii (B,).
    unit : str
        Of a radius, for tables and axes.
    attack : attack, optional
        What `sanity` is to doubt; without one it is not asked.
    ball : Ball, optional
        The attack's, its eps the largest of interest.

    Raises
    ------
    ValueError
        For what is no function, and for an attack without a ball or a ball without an attack.

    Examples
    --------
    >>> from wotlab import LinfBall, data, models
    >>> from wotlab.evaluate import Threat
    >>> x, y = data.load("digits").tensors(slice(4))
    >>> threat = Threat.nearest(LinfBall(1.0), restarts=0)
    >>> radii = threat.find(models.load("digits-standard").double(), x.double(), y)
    >>> radii.round(decimals=2)
    tensor([0.0200, 0.1100, 0.1900, 0.1500], dtype=torch.float64)
    """

    find: Find
    unit: str = "eps"
    attack: Attack | None = None
    ball: Ball | None = None

    def __post_init__(self) -> None:
        checks.function("find", self.find, "lambda model, x, y: attacks.radius(model, x, y).eps")
        if (self.attack is None) != (self.ball is None):
            missing, given = ("attack", "ball") if self.attack is None else ("ball", "attack")
            raise ValueError(f"{missing} must be given where {given} is; got None")

    @classmethod
    def nearest(cls, ball: Ball, unit: str = "eps", *, seed: int = 0, **options: Any) -> Self:
        """Changes within a Wasserstein, l2 or l-infinity ball, by `attacks.radius`.

        The ball's eps is the largest of interest; `options` go to the search, whose noise begins
        anew with `seed` at each call.
        """
        attack = attacks.transport if ball.keeps_mass else attacks.pgd
        return cls(partial(_nearest, ball, seed, options), unit, attack, ball)

    @classmethod
    def on_grid(cls, attack: Attack, ball: Ball, eps: Sequence[float], unit: str = "eps") -> Self:
        """Changes within the ball, by an attack at one budget after the other, as a curve.

        A radius is a value of `eps`, from above: the true one may lie anywhere below it.
        """
        budgets = rising(eps)
        Ball.require(ball, "a threat model, such as LinfBall(0.1)")
        find = partial(_on_grid, attack, ball, budgets)
        return cls(find, unit, attack, replace(ball, eps=budgets[-1]))

    @classmethod
    def once(cls, attack: Attack, ball: Ball, unit: str = "eps") -> Self:
        """Changes by an attack that has no budget; the ball measures how far it went."""
        return cls(partial(_once, attack, ball), unit)

    @classmethod
    def natural(cls, change: Change, sizes: Sequence[float], unit: str = "size") -> Self:
        """Changes that nobody searches for: `change(x, size)` lists the images of one size."""
        checks.function("change", change, "lambda x, sigma: [transformations.blur(x, sigma)]")
        return cls(partial(_natural, change, tuple(sorted(sizes))), unit)

    def also_by(self, attack: Attack, *eps: float) -> Self:
        """The same, and another attack within this ball on what still stands at these budgets."""
        if self.ball is None:
            raise ValueError("also_by needs the ball of a threat; this one has none")
        find = partial(_also_by, self.find, attack, self.ball, tuple(sorted(eps)))
        return replace(self, find=find)

    def or_by(self, *others: Self) -> Self:
        """The same threat, searched in several ways: each image's least radius counts."""
        for other in others:
            checks.instance("others", other, Threat)
        return replace(self, find=partial(_least, (self.find, *(each.find for each in others))))


def _nearest(ball: Any, seed: int, options: dict, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    noise = torch.Generator(x.device).manual_seed(seed)
    return attacks.radius(model, x, y, ball, generator=noise, **options).eps


def _on_grid(
    attack: Attack, ball: Ball, eps: tuple[float, ...], model: nn.Module, x: Tensor, y: Tensor
) -> Tensor:
    curve = accuracy_curve(model, x, y, attack, ball, eps)
    radii = x.new_full((len(x),), torch.inf)
    for value, left in zip(reversed(curve.eps), reversed(curve.left), strict=True):
        radii[~left] = value
    return _from_zero(model, x, y, radii)


def _also_by(
    find: Find, attack: Attack, ball: Ball, eps: tuple[float, ...],
    model: nn.Module, x: Tensor, y: Tensor,
) -> Tensor:  # fmt: skip
    radii = find(model, x, y)
    for value in eps:
        left = (radii > value).nonzero()[:, 0]
        if len(left):
            done = attacked(attack, model, x[left], y[left], replace(ball, eps=value))
            radii[left[done.success]] = value
    return radii


def _once(attack: Attack, ball: Ball, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    done = attacked(attack, model, x, y, ball)
    far = ball.distance(x, done.x_adv.clamp(0, 1))
    return _from_zero(model, x, y, torch.where(done.success, far, torch.inf))


def _natural(
    change: Change, sizes: tuple[float, ...], model: nn.Module, x: Tensor, y: Tensor
) -> Tensor:
    radii = x.new_full((len(x),), torch.inf)
    for size in reversed(sizes):
        for z in change(x, size):
            radii[~are_right(model, z, y)] = size
    return _from_zero(model, x, y, radii)


def _least(finds: tuple[Find, ...], model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([find(model, x, y) for find in finds]).amin(0)


def _from_zero(model: nn.Module, x: Tensor, y: Tensor, radii: Tensor) -> Tensor:
    return torch.where(are_right(model, x, y), radii, 0.0)
