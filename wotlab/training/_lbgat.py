"""Adversarial training towards the logits of a network that learns from clean images: LBGAT."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer

from wotlab._base import checks
from wotlab._base.networks import divergence
from wotlab.attacks import Attack
from wotlab.training._defenses import PGDAT, Grown, Schedule, pgd_adversary
from wotlab.training._inputs import train_mode


def sgd(network: nn.Module) -> Optimizer:
    """That of the paper."""
    return SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)


@dataclass(eq=False, repr=False)
class LBGAT(Grown, PGDAT):
    r"""Learnable boundary guided adversarial training (Cui, Liu, Wang and Jia, 2021).

    .. math:: \mathbb{E}\, \Bigl[\mathrm{CE}(g(x), y)
        + \tfrac{1}{K} \bigl|\mathrm{model}(z) - g(x)\bigr|^2
        + \alpha\, \mathrm{KL}(p(x) \mid p(z))\Bigr]

    g is a second, natural network that learns together with the model and sees clean images
    only. Its K logits of the clean image are what the model learns to say of the attacked one z,
    and the labels reach the model through them alone. In turn g is drawn to logits that the model
    can follow. p are the model's probabilities: with alpha > 0 this is LBGAT + TRADES(alpha).

    Parameters
    ----------
    ball, eps
        As for `PGDAT`.
    attack : attack, optional
        Makes z, against the model. By default that of `TRADES`, as in the authors' code for every
        alpha: `pgd` that climbs KL(p(x) | p(z)), 10 steps from a random start.
    natural : nn.Module
        g: a network for the same images and classes, of any kind (a ResNet-18 beside a
        WideResNet-34-10 in the paper). It is trained in place and ends in the mode it came in.
    alpha : float >= 0
        Weight of the divergence: 0 here. The paper prints rows for 0 and for 6.
    optimizer : function of the natural network
        By default SGD with lr 0.1, momentum 0.9 and weight decay 2e-4. In the paper one optimizer
        steps both networks: give `fit` the same one.
    schedule : function of the epoch, optional
        Factor on its learning rate, as for `fit`; constant by default.

    Raises
    ------
    ValueError
        For alpha < 0, what is no network or no function, and, from `loss`, a natural network
        that does not answer as the model does.

    Notes
    -----
    Both networks step at once: each takes the gradient of the whole loss at the weights that both
    had. The squared distance is a mean over images and classes, as in the authors' code.

    Only the model is to be used afterwards. The natural network is not robust; it is worth its
    time where clean accuracy matters, since the model keeps much of g's. In several processes
    each one has a natural network of its own.

    The paper trains with eps = 0.031, steps of 0.007 and lr 0.1 for 100 epochs on CIFAR.

    Examples
    --------
    >>> from wotlab import LinfBall, data, models, training
    >>> images = data.load("digits", "train").tensors(slice(64))
    >>> model, natural = (models.build("digits-small", seed=seed) for seed in (0, 1))
    >>> training.fit(model, images, training.LBGAT(LinfBall(0.2), natural=natural), epochs=1).epochs
    1
    """

    grown = ("natural", "stepper")

    attack: Attack = field(default=pgd_adversary(10, "kl"))
    _: KW_ONLY
    natural: nn.Module
    alpha: float = 0.0
    optimizer: Callable[[nn.Module], Optimizer] = sgd
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        checks.instance("natural", self.natural, nn.Module)
        checks.positive("alpha", self.alpha, zero=True)
        checks.function("optimizer", self.optimizer, "lambda g: torch.optim.Adam(g.parameters())")
        if self.schedule is not None:
            checks.function("schedule", self.schedule, "lambda epoch: 0.1 ** (epoch // 30)")
        super().__post_init__()

    def at_epoch(self, epoch: float) -> None:
        """Set the budget of this moment, and the natural network's learning rate."""
        super().at_epoch(epoch)
        self.factor = 1.0 if self.schedule is None else self.schedule(epoch)

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """The whole loss; the natural network takes its step, the model's is left to `fit`."""
        logits = model(self.attacked(model, x, y))
        target, own = self.guide(x, y, logits.detach())
        total = own + F.mse_loss(logits, target)
        if self.alpha:
            total = total + self.alpha * divergence(model(x), logits).mean()
        return total

    def guide(self, x: Tensor, y: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The natural network's logits and its mean loss, both detached, before its step."""
        if not self._made:
            self.natural.to(x.device, x.dtype)
            self.stepper = self.optimizer(self.natural)
            checks.instance("what optimizer returns", self.stepper, Optimizer)
            self.rates = [group["lr"] for group in self.stepper.param_groups]
            self.take_up()
        for group, rate in zip(self.stepper.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.factor
        with torch.autocast(x.device.type, enabled=False), train_mode(self.natural):
            target = self.natural(x)
            if target.shape != logits.shape:
                raise ValueError(
                    f"natural must return logits {tuple(logits.shape)} as the model does; "
                    f"got {tuple(target.shape)}. Take a network for the same images and classes"
                )
            own = F.cross_entropy(target, y)
            self.stepper.zero_grad()
            (own + F.mse_loss(target, logits.to(target.dtype))).backward()
            self.stepper.step()
        return target.detach().to(logits.dtype), own.detach()
