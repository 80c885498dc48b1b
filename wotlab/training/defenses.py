"""Defenses: objects with `loss(model, x, y, index)`, which `fit` minimises.

A defense that changes from epoch to epoch also has `start_epoch(epoch)`.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from wotlab.attacks import AttackResult, mirror_ascent
from wotlab.balls import WassersteinBall


class Standard:
    """Cross-entropy on the clean images, E[CE(model(x), y)]: no defense, the baseline of all."""

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """Mean cross-entropy of the minibatch; `index` are the images' places in the data set."""
        return F.cross_entropy(model(x), y)


class WassersteinAT:
    r"""Adversarial training on a Wasserstein ball: E[max_{z in ball(x)} CE(model(z), y)].

    Parameters
    ----------
    ball : WassersteinBall
        Its eps is that of the last epochs.
    eps : function of the epoch (from 0), optional
        eps of each epoch; constant by default. Wong et al. (2019) and Hu et al. (2020) let it
        grow: a network that starts at the full budget may learn nothing at all.
    attack : attack, optional
        Called as `attack(model, x, y, ball)`; bind its options with functools.partial. By
        default six steps of `mirror_ascent` that go on after an image is broken. For the paper's
        own training take `pgd` with `constrained_sinkhorn` at tol=0.1, its lenient stop.

    Notes
    -----
    Attacks run in eval mode, the loss in the model's own mode. An attack leaves no trace in
    the weights' gradients.
    """

    def __init__(
        self,
        ball: WassersteinBall,
        eps: Callable[[int], float] | None = None,
        attack: Callable[..., AttackResult] | None = None,
    ):
        self.ball, self.eps = ball, eps
        self.attack = attack or partial(mirror_ascent, steps=6, step_size=4.0, early_stop=False)
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        """Set the budget of this epoch."""
        self.now = self.ball if self.eps is None else replace(self.ball, eps=self.eps(epoch))

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """Mean cross-entropy of the attacked minibatch."""
        return F.cross_entropy(model(self.attack(model, x, y, self.now).x_adv), y)
