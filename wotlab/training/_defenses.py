"""Adversarial training in its usual forms: PGD-AT, TRADES, MART, Wasserstein."""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from lightning_fabric.wrappers import is_wrapped
from torch import Tensor, nn
from torch.nn import functional as F

from wotlab._base import checks, draws
from wotlab._base.networks import divergence
from wotlab.attacks import Attack, mirror_ascent, pgd
from wotlab.balls import WassersteinBall


def bare(model: nn.Module) -> nn.Module:
    """The network itself, without what an engine wraps around it: attacks ask this one.

    A wrapper may average over processes at every call, and attacks call it unequally often.
    """
    return model.module if is_wrapped(model) else model


class Bounded:
    """A defense on a ball, `ball`, whose eps may follow the epoch: `now` is that of the moment."""

    def __init__(self, ball, eps: Callable[[float], float] | None = None):
        self.ball, self.eps = ball, eps
        self.at_epoch(0)

    def at_epoch(self, epoch: float) -> None:
        """Set the budget of this moment."""
        self.now = self.ball if self.eps is None else replace(self.ball, eps=self.eps(epoch))


class PGDAT(Bounded):
    r"""Adversarial training (Madry et al., 2018): E[max_{z in ball(x)} CE(model(z), y)].

    Parameters
    ----------
    ball : LinfBall, L2Ball, WassersteinBall or InternalWassersteinBall
        Its eps is the budget where `eps` is not given.
    eps : function of the epoch, optional
        eps at each minibatch, 2.5 being the middle of the third epoch; constant by default. A
        small network that starts at eps = 0.3 on MNIST may learn nothing for many epochs.
    attack : attack, optional
        Called as `attack(model, x, y, ball)`; bind its options with functools.partial. By
        default `pgd` from a random start with 40 steps (as on MNIST in the paper) of
        2.5 * eps / 40, that go on after an image is broken.

    Notes
    -----
    Attacks run in eval mode, the loss in the model's own mode. An attack leaves no trace in
    the weights' gradients.
    """

    sees_clean = False  # whether `mix` wants the clean images' logits

    def __init__(self, ball, eps: Callable[[float], float] | None = None, attack=None):
        super().__init__(ball, eps)
        self.attack = attack or self.default_attack()

    def default_attack(self) -> Attack:
        return pgd_adversary(steps=40)

    def attacked(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The images of this minibatch, attacked."""
        return self.attack(bare(model), x, y, self.now).x_adv

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """Mean loss of the minibatch and its attacked images."""
        z = self.attacked(model, x, y)
        clean = model(x) if self.sees_clean else None
        return self.mix(clean, model(z), y)

    def mix(self, clean: Tensor | None, moved: Tensor, y: Tensor) -> Tensor:
        """Mean loss from the logits of the clean and of the attacked images."""
        return F.cross_entropy(moved, y)


def pgd_adversary(steps: int, loss: str = "ce", step: float | None = None) -> Attack:
    """`pgd` from a random start, by default with steps of 2.5 * eps / steps (Madry, 2018)."""
    return partial(
        pgd, steps=steps, step_size=step or (lambda x, eps: 2.5 * eps / steps), loss=loss,
        random_start=True, early_stop=False,
    )  # fmt: skip


class TRADES(PGDAT):
    r"""E[CE(model(x), y) + beta max_{z in ball(x)} KL(p(x) | p(z))] (Zhang et al., 2019).

    Parameters
    ----------
    ball, eps
        As for `PGDAT`.
    beta : float > 0
        Weight of the divergence: 6, as in the paper's best rows. Larger is more robust, and less
        accurate on clean images.
    attack : attack, optional
        By default `pgd` that climbs the divergence ("kl"), 10 steps from a random start.

    Raises
    ------
    ValueError
        For beta <= 0.
    """

    sees_clean = True

    def __init__(self, ball, eps=None, attack=None, *, beta: float = 6.0):
        checks.positive("beta", beta)
        super().__init__(ball, eps, attack)
        self.beta = beta

    def default_attack(self) -> Attack:
        return pgd_adversary(steps=10, loss="kl")

    def mix(self, clean: Tensor, moved: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy of the clean images, and the divergence of the attacked ones."""
        return F.cross_entropy(clean, y) + self.beta * divergence(clean, moved).mean()


class MART(PGDAT):
    r"""TRADES that looks harder at images which are misread (Wang et al., 2020).

    E[BCE(p(z), y) + beta (1 - p_y(x)) KL(p(x) | p(z))], where z climbs the cross-entropy in
    ball(x) and BCE(p, y) = -log p_y - log(1 - max_{k != y} p_k).

    Parameters
    ----------
    ball, eps, attack
        As for `PGDAT`; by default 10 steps.
    beta : float > 0
        5 in the paper.

    Raises
    ------
    ValueError
        For beta <= 0.
    """

    sees_clean = True

    def __init__(self, ball, eps=None, attack=None, *, beta: float = 5.0):
        checks.positive("beta", beta)
        super().__init__(ball, eps, attack)
        self.beta = beta

    def default_attack(self) -> Attack:
        return pgd_adversary(steps=10)

    def mix(self, clean: Tensor, moved: Tensor, y: Tensor) -> Tensor:
        """Boosted cross-entropy of the attacked images, and the weighted divergence."""
        own = F.one_hot(y, moved.shape[1]).bool()
        # log(1 - p_rival) = log of the sum of all others' probabilities, without cancellation
        rival = moved.masked_fill(own, -torch.inf).argmax(1, keepdim=True)
        rest = moved.scatter(1, rival, -torch.inf).logsumexp(1) - moved.logsumexp(1)
        boosted = F.cross_entropy(moved, y, reduction="none") - rest
        missed = 1 - clean.softmax(1).gather(1, y[:, None])[:, 0]
        return (boosted + self.beta * missed * divergence(clean, moved)).mean()


class WassersteinAT(PGDAT):
    r"""Adversarial training on a Wasserstein ball: E[max_{z in ball(x)} CE(model(z), y)].

    Parameters
    ----------
    ball : WassersteinBall
        Its eps is the budget where `eps` is not given.
    eps : function of the epoch, optional
        As for `PGDAT`. Wong et al. (2019) and Hu et al. (2020) let it
        grow: a network that starts at the full budget may learn nothing at all.
    attack : attack, optional
        Called as `attack(model, x, y, ball)`; bind its options with functools.partial. By
        default six steps of `mirror_ascent` that go on after an image is broken. For the papers'
        own training take `pgd` with `constrained_sinkhorn` at tol=0.1, its lenient stop, or with
        `unbalanced_sinkhorn`.
    noise : float >= 0
        Deviation of Gaussian noise on the images that are attacked, clamped to [0, 1]: 0.01 in
        Subramanyam (2022), none by default.
    features : nn.Module, optional
        A layer of `model`. The loss is then 0.9 CE + 0.1 KL between the soft-max of this layer's
        output on the clean and on the attacked images (Subramanyam, 2022).

    Notes
    -----
    As for `PGDAT`.

    Raises
    ------
    ValueError
        For noise < 0.
    """

    def __init__(
        self,
        ball: WassersteinBall,
        eps: Callable[[float], float] | None = None,
        attack: Attack | None = None,
        *,
        noise: float = 0.0,
        features: nn.Module | None = None,
    ):
        checks.positive("noise", noise, zero=True)
        super().__init__(ball, eps, attack)
        self.noise, self.features = noise, features

    def default_attack(self) -> Attack:
        return partial(mirror_ascent, steps=6, step_size=4.0, early_stop=False)

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """Mean cross-entropy of the attacked minibatch, or the mixture with the features."""
        if self.noise:
            x = (x + self.noise * draws.normal(x)).clamp(0, 1)
        z = self.attacked(model, x, y)
        if self.features is None:
            return F.cross_entropy(model(z), y)
        with watched(self.features) as seen:
            model(x)
            logits = model(z)
        clean, moved = (part.flatten(1) for part in seen)
        return 0.9 * F.cross_entropy(logits, y) + 0.1 * divergence(clean, moved).mean()


@contextmanager
def watched(layer: nn.Module, before: bool = False):
    """What a layer returns at each call, or what it is given, in a list."""
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(
        lambda module, given, result: seen.append(given[0] if before else result)
    )
    try:
        yield seen
    finally:
        hook.remove()
