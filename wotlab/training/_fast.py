"""Adversarial training at about the price of standard training: fast and free."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wotlab._base import checks
from wotlab._base.modes import eval_mode
from wotlab.attacks import Objective
from wotlab.training._defenses import LinfDefense, bare


@dataclass(eq=False, repr=False)
class FastAT(LinfDefense):
    r"""Adversarial training with one step from a random start (Wong, Rice and Kolter, 2020).

    .. math:: z = x + \mathrm{clamp}\bigl(\delta + \mathtt{step}\, \varepsilon\, \mathrm{sign}(g),
        -\varepsilon, \varepsilon\bigr)

    delta is uniform in [-eps, eps] for each pixel, and g is the gradient of the cross-entropy at
    x + delta, which may lie outside [0, 1] (their Algorithm 3). The network learns from z, clamped
    to [0, 1], whatever the loss there.

    Parameters
    ----------
    ball : LinfBall
    eps
        As for `PGDAT`.
    step : float > 0
        Length of the step in units of eps: 1.25 in the paper. Much larger ones overfit: the
        network then breaks under two steps while it withstands one.

    Raises
    ------
    ValueError
        For a ball of another kind, or step <= 0.

    Examples
    --------
    >>> from wotlab import LinfBall, data, models, training
    >>> images = data.load("digits", "train").tensors(slice(64))
    >>> defense = training.FastAT(LinfBall(0.2))
    >>> fit = training.fit(models.build("digits-small", seed=0), images, defense, epochs=1)
    >>> fit.history[0]["gradients"]  # of 64 images: one for the attack, one for the weights
    128
    """

    positive = ("step",)

    step: float = field(default=1.25, kw_only=True)

    def attacked(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The images of this minibatch after the one step."""
        model = bare(model)
        with eval_mode(model):
            # as printed: clamped here, half of the black pixels would all start from 0
            start = x + self.now.noise(x)
            gradient, _, _ = Objective(model, y, False, "ce").gradient(start)
            return self.now.project(x, start + self.step * self.now.eps * gradient.sign())

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """Mean cross-entropy of the attacked minibatch."""
        return F.cross_entropy(model(self.attacked(model, x, y)), y)


@dataclass(eq=False, repr=False)
class FreeAT(LinfDefense):
    r"""One gradient for the weights and the attack alike (Shafahi et al., 2019).

    Each minibatch is trained on `repeats` times; the gradient of each backward pass moves the
    weights, and its sign, by eps, the perturbation, which goes on into the next minibatch.

    Parameters
    ----------
    ball : LinfBall
    eps
        As for `PGDAT`.
    repeats : int >= 1
        m in the paper: 8 there on CIFAR-10. Take a `repeats`-th of the epochs.

    Raises
    ------
    ValueError
        For a ball of another kind, or repeats < 1.

    Examples
    --------
    >>> from wotlab import LinfBall, data, models, training
    >>> images = data.load("digits", "train").tensors(slice(64))
    >>> defense = training.FreeAT(LinfBall(0.2), repeats=4)
    >>> fit = training.fit(models.build("digits-small", seed=0), images, defense, epochs=1)
    >>> fit.history[0]["gradients"]  # four steps on 64 images: weights and attack share them
    256
    """

    repeats: int = field(default=8, kw_only=True)

    def __post_init__(self) -> None:
        checks.count("repeats", self.repeats)
        super().__post_init__()
        self.change: Tensor | None = None
        self.last: Tensor | None = None

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """Mean cross-entropy of the perturbed minibatch."""
        self._learn()
        z = x.clone()
        if self.change is not None:
            few = min(len(x), len(self.change))  # a last minibatch may be smaller
            z[:few] += self.change[:few].to(x)
        self.last = self.now.project(x, z).requires_grad_()
        self.clean = x
        return F.cross_entropy(model(self.last), y)

    def _learn(self) -> None:
        """Step along the gradient that the last backward pass left at the images."""
        if self.last is not None and self.last.grad is not None:
            eps = self.now.eps
            change = self.last.detach() - self.clean + eps * self.last.grad.sign()
            change = change.clamp(-eps, eps)
            if self.change is not None and len(self.change) > len(change):
                change = torch.cat([change, self.change[len(change) :]])
            self.change, self.last = change, None

    def state_dict(self) -> dict:
        """The perturbation, so that a resumed run goes on with it."""
        self._learn()
        return {"change": self.change}

    def load_state_dict(self, state: dict) -> None:
        self.change, self.last = state["change"], None
