"""Training without a defense or on noise; adversarial training on a ball: PGD-AT, TRADES, MART."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, Protocol

import torch
from lightning_fabric.wrappers import is_wrapped
from torch import Tensor, nn
from torch.nn import functional as F

from wotlab._base import checks
from wotlab._base.networks import divergence
from wotlab.attacks import Attack, AttackResult, pgd
from wotlab.balls import Ball, LinfBall
from wotlab.training._readable import Readable

Schedule = Callable[[float], float]


def bare(model: nn.Module) -> nn.Module:
    """The network itself, without what an engine wraps around it: attacks ask this one.

    A wrapper may average over processes at every call, and attacks call it unequally often.
    """
    return model.get_submodule("module") if is_wrapped(model) else model


class Defense(Protocol):
    """What `fit` needs of a defense; what else it may have is said in `wotlab.training`.

    Examples
    --------
    >>> import torch
    >>> from torch.nn.functional import cross_entropy
    >>> from wotlab import data, models, training
    >>> class Noisy:
    ...     def loss(self, model, x, y, index):
    ...         z = (x + 0.1 * torch.randn_like(x)).clamp(0, 1)
    ...         return cross_entropy(model(z), y)
    >>> images = data.load("digits", "train").tensors(slice(64))
    >>> model = models.build("digits-small", seed=0)
    >>> training.fit(model, images, Noisy(), epochs=1).epochs
    1
    """

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """Mean loss of the minibatch x, y, whose images have the places `index`."""


class Standard(Readable):
    r"""Cross-entropy on the clean images: no defense, the baseline of all.

    .. math:: \mathbb{E}\ \mathrm{CE}(\mathrm{model}(x), y)

    Examples
    --------
    >>> from wotlab import data, models, training
    >>> images = data.load("digits", "train").tensors(slice(64))
    >>> model, baseline = models.build("digits-small", seed=0), training.Standard()
    >>> fit = training.fit(model, images, baseline, epochs=3)
    >>> fit.history[2]["loss"] < fit.history[0]["loss"]
    True
    """

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """Mean cross-entropy of the minibatch; `index` are the images' places in the data set."""
        return F.cross_entropy(model(x), y)


@dataclass(eq=False, repr=False)
class NoiseAugmentation(Readable):
    r"""Cross-entropy on noisy images: the training of networks that noise will smooth.

    .. math:: \mathbb{E}\ \mathrm{CE}(\mathrm{model}(\mathtt{noise}(x)), y)

    So a network learns to read what `wotlab.smoothing` shows it (Lecuyer et al., 2019; Cohen et
    al., 2019). It costs as much as standard training.

    Parameters
    ----------
    noise : function
        Called as `noise(x)` on images (B, C, H, W), each time with fresh noise; bind its options
        with functools.partial: `partial(wotlab.smoothing.noisy, sigma=0.01)` before
        `wotlab.smoothing.certify` with that sigma, as in Levine and Feizi (2020), or
        `partial(wotlab.smoothing.noisy_l1, lam=2.0)` before `wotlab.smoothing.certify_l1`.

    Raises
    ------
    ValueError
        For noise that is no function.

    Examples
    --------
    >>> from functools import partial
    >>> from wotlab import data, models, smoothing, training
    >>> images = data.load("digits", "train").tensors(slice(64))
    >>> defense = training.NoiseAugmentation(partial(smoothing.noisy, sigma=0.002))
    >>> fit = training.fit(models.build("digits-small", seed=0), images, defense, epochs=3)
    >>> fit.history[2]["loss"] < fit.history[0]["loss"]
    True
    """

    noise: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        checks.function("noise", self.noise, "functools.partial(smoothing.noisy, sigma=0.01)")

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """Mean cross-entropy of the minibatch under noise."""
        return F.cross_entropy(model(self.noise(x)), y)


@dataclass(eq=False, repr=False)
class BallDefense(Readable):
    """A defense on a ball, `ball`, whose eps may follow the epoch: `now` is that of the moment.

    `kind` are the balls that it works on, `positive` its settings that are numbers above 0.
    """

    kind: ClassVar[type[Ball]] = Ball  # type: ignore[type-abstract] # nothing is made of it
    positive: ClassVar[tuple[str, ...]] = ()

    ball: Ball
    eps: Schedule | None = None
    now: Ball = field(init=False, repr=False)

    def __post_init__(self) -> None:
        wanted = "a threat model, such as LinfBall(0.1)" if self.kind is Ball else ""
        self.kind.require(self.ball, wanted)
        for name in self.positive:
            checks.positive(name, getattr(self, name))
        if self.eps is not None:
            checks.function("eps", self.eps, "lambda epoch: 0.1 * min(1.0, epoch / 5)")
        self.at_epoch(0)

    def at_epoch(self, epoch: float) -> None:
        """Set the budget of this moment."""
        self.now = self.ball if self.eps is None else replace(self.ball, eps=self.eps(epoch))


@dataclass(eq=False, repr=False)
class LinfDefense(BallDefense):
    """A defense that steps by signs of gradients, which suit an l-infinity ball alone."""

    kind = LinfBall

    ball: LinfBall
    now: LinfBall = field(init=False, repr=False)


def pgd_adversary(steps: int, loss: str = "ce", step: float | None = None) -> Attack:
    """`pgd` from a random start, by default with steps of 2.5 * eps / steps (Madry, 2018).

    Parameters
    ----------
    steps : int >= 1
    loss : "ce", "margin" or "kl"
        As for `pgd`.
    step : float > 0, optional
        Length of a step, in brightness.

    Examples
    --------
    >>> from wotlab import LinfBall, data, models, training
    >>> model = models.load("digits-standard").double()
    >>> x, y = data.load("digits").tensors(slice(8))
    >>> attack = training.pgd_adversary(10)  # steps of eps / 4
    >>> int(attack(model, x.double(), y, LinfBall(0.3)).success.sum())
    8
    """
    return partial(
        pgd, steps=steps, step_size=step or (lambda x, eps: 2.5 * eps / steps), loss=loss,
        random_start=True, early_stop=False,
    )  # fmt: skip


@dataclass(eq=False, repr=False)
class PGDAT(BallDefense):
    r"""Adversarial training (Madry et al., 2018): the loss of the attacked images.

    .. math:: \mathbb{E} \max_{z \in B_\varepsilon(x)} \mathrm{CE}(\mathrm{model}(z), y)

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

    Examples
    --------
    >>> from wotlab import LinfBall, data, models, training
    >>> images = data.load("digits", "train").tensors(slice(64))
    >>> defense = training.PGDAT(LinfBall(0.2), attack=training.pgd_adversary(10))
    >>> model = models.build("digits-small", seed=0)
    >>> fit = training.fit(model, images, defense, epochs=1)
    >>> fit.history[0]["gradients"]  # of 64 images: 10 by the attack
    704
    """

    sees_clean: ClassVar[bool] = False  # whether `mix` wants the clean images' logits

    attack: Attack = field(default=pgd_adversary(40))

    def __post_init__(self) -> None:
        checks.function("attack", self.attack, "functools.partial(wotlab.attacks.pgd, steps=20)")
        super().__post_init__()

    def attacked(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The images of this minibatch, attacked."""
        return self.made(self.attack, model, x, y)

    def made(self, attack: Attack, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """What an attack makes of these images, with the budget of this moment."""
        done = attack(bare(model), x, y, self.now)
        checks.instance("what attack returns", done, AttackResult)
        return done.x_adv

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """Mean loss of the minibatch and its attacked images."""
        z = self.attacked(model, x, y)
        clean = model(x) if self.sees_clean else x.new_empty(0)
        return self.mix(clean, model(z), y)

    def mix(self, clean: Tensor, moved: Tensor, y: Tensor) -> Tensor:
        """Mean loss from the logits of the clean images, if it `sees_clean`, and the attacked."""
        return F.cross_entropy(moved, y)


@dataclass(eq=False, repr=False)
class TRADES(PGDAT):
    r"""Clean loss, and how far an attack moves the prediction: TRADES (Zhang et al., 2019).

    .. math:: \mathbb{E}\, \Bigl[\mathrm{CE}(\mathrm{model}(x), y)
        + \beta \max_{z \in B_\varepsilon(x)} \mathrm{KL}(p(x) \mid p(z))\Bigr]

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

    Examples
    --------
    >>> import torch
    >>> from wotlab import LinfBall, training
    >>> logits, y = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([0])
    >>> training.TRADES(LinfBall(0.2)).mix(logits, -logits, y).round(decimals=3)
    tensor(9.2660, dtype=torch.float64)
    """

    sees_clean = True
    positive = ("beta",)

    attack: Attack = field(default=pgd_adversary(10, "kl"))
    beta: float = field(default=6.0, kw_only=True)

    def mix(self, clean: Tensor, moved: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy of the clean images, and the divergence of the attacked ones."""
        return F.cross_entropy(clean, y) + self.beta * divergence(clean, moved).mean()


@dataclass(eq=False, repr=False)
class MART(PGDAT):
    r"""TRADES that looks harder at images which are misread (Wang et al., 2020).

    .. math::
        & \mathbb{E}\, \bigl[\mathrm{BCE}(p(z), y)
          + \beta\, (1 - p_y(x))\, \mathrm{KL}(p(x) \mid p(z))\bigr], \\
        & \mathrm{BCE}(p, y) = -\log p_y - \log\bigl(1 - \max_{k \ne y} p_k\bigr)

    where z climbs the cross-entropy in the ball around x.

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

    Examples
    --------
    >>> import torch
    >>> from wotlab import LinfBall, training
    >>> logits, y = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([0])
    >>> training.MART(LinfBall(0.2)).mix(logits, -logits, y).round(decimals=3)
    tensor(5.1620, dtype=torch.float64)
    """

    sees_clean = True
    positive = ("beta",)

    attack: Attack = field(default=pgd_adversary(10))
    beta: float = field(default=5.0, kw_only=True)

    def mix(self, clean: Tensor, moved: Tensor, y: Tensor) -> Tensor:
        """Boosted cross-entropy of the attacked images, and the weighted divergence."""
        own = F.one_hot(y, moved.shape[1]).bool()
        # log(1 - p_rival) = log of the sum of all others' probabilities, without cancellation
        rival = moved.masked_fill(own, -torch.inf).argmax(1, keepdim=True)
        rest = moved.scatter(1, rival, -torch.inf).logsumexp(1) - moved.logsumexp(1)
        boosted = F.cross_entropy(moved, y, reduction="none") - rest
        missed = 1 - clean.softmax(1).gather(1, y[:, None])[:, 0]
        return (boosted + self.beta * missed * divergence(clean, moved)).mean()


class Grown(Readable):
    """A defense with networks and optimizers of its own, made when the first minibatch is known.

    `grown` names them. What a checkpoint holds of them is put into them as they are made.
    """

    grown: tuple[str, ...]
    _made = False
    _stored: dict | None = None

    def take_up(self) -> None:
        """Go on with what was stored, now that they are made."""
        self._made = True
        for name, state in (self._stored or {}).items():
            getattr(self, name).load_state_dict(state)

    def state_dict(self) -> dict:
        """The networks and their optimizers, so that a resumed run goes on with them."""
        made = {name: getattr(self, name).state_dict() for name in self.grown if self._made}
        return {"stored": made or self._stored}

    def load_state_dict(self, state: dict) -> None:
        """Take up what `state_dict` gave; they are made at the next minibatch."""
        self._stored, self._made = state["stored"], False


@contextmanager
def watched(layer: nn.Module, before: bool = False) -> Iterator[list[Tensor]]:
    """What a layer returns at each call, or what it is given, in a list."""
    seen: list[Tensor] = []
    with layer.register_forward_hook(
        lambda module, given, result: seen.append(given[0] if before else result)
    ):
        yield seen
