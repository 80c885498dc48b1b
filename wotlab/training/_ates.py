"""Adversarial training whose attack stops at images that are hard enough: ATES."""

import inspect
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor, nn

from wotlab._base import checks
from wotlab.attacks import Attack, Objective
from wotlab.training._defenses import PGDAT, Schedule, pgd_adversary


@dataclass(frozen=True, eq=False)
class HardEnough(Objective):
    """An objective that is reached where another class leads the label's by more than `gap`."""

    gap: float = 1.0

    def broken(self, logits: Tensor) -> Tensor:
        """Whether the probability gap exceeds the threshold, (B,)."""
        return gaps(logits, self.y) > self.gap


def gaps(logits: Tensor, y: Tensor) -> Tensor:
    """By how much the best other class is more probable than the label, (B,) in [-1, 1]."""
    p, own = logits.softmax(1), y[:, None]
    return p.scatter(1, own, -1).amax(1) - p.gather(1, own)[:, 0]


@dataclass(eq=False, repr=False)
class ATES(PGDAT):
    r"""Adversarial training with early stopping (Sitawarin, Chakraborty and Wagner, 2020).

    .. math:: \mathbb{E}\, \mathrm{CE}(\mathrm{model}(z), y), \quad
        z = \text{the first iterate with } \max_{j \ne y} p_j(z) - p_y(z) > \mathtt{gap}

    An image that is hard enough takes no further step. The threshold grows over the epochs, so
    that the network first learns from easy images and ends with those of `PGDAT`. An image that
    never becomes so hard goes to the end, and counts as in `PGDAT`.

    Parameters
    ----------
    ball, eps
        As for `PGDAT`.
    attack : attack, optional
        As for `PGDAT`; by default 10 steps. It must take `objective=` and `early_stop=`, as `pgd`
        does, since this is how it is stopped.
    gap : function of the epoch
        The threshold at each minibatch, from -1 (no step) to 1 (`PGDAT`), 2.5 being the middle
        of the third epoch. The authors let it grow linearly, or in equal steps, from one value
        to another; `lambda epoch: min(1.0, epoch / 30)` takes 30 epochs to reach `PGDAT`.

    Raises
    ------
    ValueError
        For an attack that cannot be stopped, a gap that is no function, or that leaves [-1, 1].

    Notes
    -----
    "Improving Adversarial Robustness Through Progressive Hardening", whose later versions are
    called "SAT". Of the difficulties that those name it is that of the soft-max, P-SAT; the
    stop itself is that of the authors' code, which steps where the gap is at most the threshold.
    There the first image that is looked at is the random start. Here, as in every attack of this
    package, it is the clean image, which therefore stays as it is where it is hard enough. And
    here an image that is never hard enough is the best of its iterates, there the last one.

    It saves gradients early in training, and none once the threshold is out of reach. With an
    attack of one step there is little to stop: take `FastAT`.

    Examples
    --------
    >>> from wotlab import LinfBall, data, models, training
    >>> images = data.load("digits", "train").tensors(slice(64))
    >>> defense = training.ATES(LinfBall(0.2), gap=lambda epoch: epoch - 0.5)
    >>> fit = training.fit(models.build("digits-small", seed=0), images, defense, epochs=2)
    >>> fit.history[0]["gradients"] < fit.history[1]["gradients"]  # the attack goes further
    True
    """

    attack: Attack = field(default=pgd_adversary(10))
    gap: Schedule = field(kw_only=True)

    def __post_init__(self) -> None:
        checks.function("gap", self.gap, "lambda epoch: min(1.0, epoch / 30)")
        super().__post_init__()
        known = inspect.signature(self.attack).parameters
        every = any(p.kind is p.VAR_KEYWORD for p in known.values())
        if not (every or {"objective", "early_stop"} <= known.keys()):
            raise ValueError(
                f"attack must take objective= and early_stop=, to be stopped; "
                f"{checks.found(self.attack)} does not. Take one of pgd, such as pgd_adversary(10)"
            )

    def at_epoch(self, epoch: float) -> None:
        """Set the budget and the threshold of this moment."""
        super().at_epoch(epoch)
        self.limit = self.gap(epoch)
        if not -1 <= self.limit <= 1:
            raise ValueError(
                f"gap must lie in [-1, 1], a difference of probabilities; got {self.limit} at "
                f"epoch {epoch:g}. Wrap it as max(-1.0, min(1.0, ...))"
            )

    def attacked(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The images of this minibatch, each attacked until it is hard enough."""
        if self.limit == 1:  # no gap is larger
            return super().attacked(model, x, y)
        stop = partial(HardEnough, gap=self.limit)
        return self.made(partial(self.attack, objective=stop, early_stop=True), model, x, y)
