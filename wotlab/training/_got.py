"""GOT: adversarial training with transport between clean and adversarial representations."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import KW_ONLY, dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wotlab._base import checks
from wotlab.balls import LinfBall
from wotlab.training._defenses import PGDAT, TRADES, Grown, bare, pgd_adversary, watched
from wotlab.training._representation_transport import JointTransport, Pairs


class Setting(NamedTuple):
    """What the paper prints for a data set: the attack's, TRADES' beta, what GOT-PGD trains on."""

    steps: int = 20
    eps: float = 8 / 255
    step: float = 2 / 255
    trades: float = 6.0
    alpha: float = 1.0
    clean: float = 0.0


DATA = {
    "mnist": Setting(steps=40, eps=0.3, step=0.01),
    "cifar10": Setting(),
    "cifar100": Setting(),
    "svhn": Setting(trades=3.0, alpha=2.0, clean=0.5),
}
VARIANTS = ("GOT-PGD-S", "GOT-PGD-LM", "GOT-TRADES-S", "GOT-TRADES-LM")


def linear(size: int) -> nn.Linear:
    """A linear potential that is 0 at first."""
    phi = nn.Linear(size, 1)
    nn.init.zeros_(phi.weight)
    nn.init.zeros_(phi.bias)
    return phi


@dataclass(eq=False, repr=False)
class GOT(Grown):
    r"""Adversarial training with transport between clean and attacked representations.

    .. math::
        & \alpha\, L_{\mathtt{inner}}(x, z) + \mathtt{clean}\ \mathrm{CE}(x)
          + \beta\, W_d(Q, Q^a) \\
        & \text{where}\quad z = \mathrm{attack}(x)

    W_d is the transport cost between the laws of u = (latent, prediction) over the clean and
    the attacked minibatch ("Improving Robustness with Optimal Transport based Adversarial
    Generalization", GOT).

    Parameters
    ----------
    inner : PGDAT, TRADES or MART
        Makes the attack and L_inner.
    term : JointTransport
        The paper's by default: the semi-dual, cosine and KL, reg = 0.1.
    beta : float >= 0
        10 in the paper, searched from 0.01 to 100. Keep beta * reg well below 1 for
        "semi-dual" and "entropic" without matched labels: see the notes.
    alpha, clean : float >= 0
        Weights of L_inner (1 in the paper, 2 for GOT-PGD on SVHN) and of the cross-entropy of
        the clean images (0; 0.5 there).
    latent : str, optional
        Name of the layer whose output is the latent, as `model.named_modules()` has it. By
        default what goes into the last linear layer. The paper's middle layer of the
        Carlini-Wagner network, its last pooling, is "9".
    potential : function of the latent's size, optional
        Makes phi for the semi-dual; a linear layer by default, as in the paper, that starts at
        0, where the term is at least 0. From random weights it starts far below.
    ascent, lr : int >= 1, float > 0
        Steps of Adam on phi a minibatch, and its learning rate: 1 and 1e-3.
    hold : bool
        Hold phi's values at the latents while the weights step. At the best phi their gradient
        is zero, so that nothing is lost; short of it the weights would follow it and make the
        latents, and with them -phi^c, grow without bound. False: gradients go through phi, too.

    Raises
    ------
    ValueError
        For numbers out of range; from `loss`, for a layer that does not exist, and what
        `JointTransport` refuses.

    Notes
    -----
    K equal classes whose representations are K points far apart make the entropic term reg log K
    even if no attack moves them, and a constant network makes it 0 at a cross-entropy of log K.
    At beta * reg = 1, the paper's own setting, the constant network is as good as a perfect one.

    Of a single image the term is the cost between it and its attack: there is one coupling.
    In several processes each one compares its own part of the minibatch and learns its own phi.

    Examples
    --------
    >>> from wotlab import LinfBall, data, models, training
    >>> images = data.load("digits", "train").tensors(slice(64))
    >>> inner = training.PGDAT(LinfBall(0.2), attack=training.pgd_adversary(10))
    >>> defense = training.GOT(inner, beta=1.0)
    >>> model = models.build("digits-small", seed=0)
    >>> training.fit(model, images, defense, epochs=1).epochs
    1
    """

    grown = ("phi", "climber")

    inner: PGDAT
    term: JointTransport = field(default_factory=JointTransport)
    _: KW_ONLY
    beta: float = 10.0
    alpha: float = 1.0
    clean: float = 0.0
    latent: str | None = None
    potential: Callable[[int], nn.Module] = linear
    ascent: int = 1
    lr: float = 1e-3
    hold: bool = True

    def __post_init__(self) -> None:
        # of one with a loss of its own (AWP, LBGAT) the attack alone would be left
        if not isinstance(self.inner, PGDAT) or type(self.inner).loss is not PGDAT.loss:
            found = checks.found(self.inner)
            raise ValueError(f"inner must be PGDAT, TRADES or MART; got {found}")
        checks.instance("term", self.term, JointTransport)
        if not isinstance(self.potential, type):  # a class of networks would do
            checks.function("potential", self.potential, "lambda size: nn.Linear(size, 1)")
        for name in ("beta", "alpha", "clean"):
            checks.positive(name, getattr(self, name), zero=True)
        checks.count("ascent", self.ascent)
        checks.flags(hold=self.hold)
        checks.positive("lr", self.lr)

    @classmethod
    def paper(cls, variant: str, data: str) -> "GOT":
        """A variant by its name, with the paper's settings for a data set.

        Parameters
        ----------
        variant : "GOT-PGD-S", "GOT-PGD-LM", "GOT-TRADES-S" or "GOT-TRADES-LM"
            The adversary, and whether labels are matched (LM).
        data : "mnist", "cifar10", "cifar100" or "svhn"

        Raises
        ------
        ValueError
            For another name.
        """
        for what, given, known in (("variant", variant, VARIANTS), ("data", data, (*DATA,))):
            if given not in known:
                raise ValueError(f"{what} must be one of {', '.join(known)}; got {given!r}")
        setting = DATA[data]
        ball, kind = LinfBall(setting.eps), "kl" if "TRADES" in variant else "ce"
        attack = pgd_adversary(setting.steps, kind, setting.step)
        term = JointTransport(match_labels=variant.endswith("LM"))
        if kind == "kl":
            return cls(TRADES(ball, attack=attack, beta=setting.trades), term)
        inner = PGDAT(ball, attack=attack)
        return cls(inner, term, alpha=setting.alpha, clean=setting.clean)

    def at_epoch(self, epoch: float) -> None:
        """Set the budget of this moment."""
        self.inner.at_epoch(epoch)

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """The inner loss and the transport term of this minibatch."""
        z = self.inner.attacked(model, x, y)
        with self.watch(bare(model)) as seen:
            logits, moved = model(x), model(z)
        u, v = (seen[0], logits), (seen[1], moved)
        total = self.alpha * self.inner.mix(logits, moved, y)
        if self.clean:
            total = total + self.clean * nn.functional.cross_entropy(logits, y)
        if self.term.kind == "semi-dual":
            self.climb(u, v, y)

        def phi(z: Tensor) -> Tensor:  # as the weights' step sees it
            return self.phi(z.detach() if self.hold else z)

        return total + self.beta * self.term(u, v, (y, y), phi).to(total.dtype)

    def watch(self, model: nn.Module) -> AbstractContextManager[list[Tensor]]:
        """A record of the latents of the calls that follow."""
        layers = dict(model.named_modules())
        if self.latent is None:
            linear = [layer for layer in layers.values() if isinstance(layer, nn.Linear)]
            if not linear:
                raise ValueError("latent must name a layer: the model has no linear layer")
            return watched(linear[-1], before=True)
        if self.latent not in layers:
            raise ValueError(
                f"latent must be one of {', '.join(k for k in layers if k)}; got {self.latent!r}"
            )
        return watched(layers[self.latent])

    def climb(self, u: Pairs, v: Pairs, y: Tensor) -> None:
        """Gradient ascent on phi, with latents and logits held."""
        u, v = ((latent.detach(), logits.detach()) for latent, logits in (u, v))
        if not self._made:
            self.phi = self.potential(u[0].flatten(1).shape[1])
            self.phi.to(u[0].device, torch.promote_types(u[0].dtype, torch.float32))
            self.climber = torch.optim.Adam(self.phi.parameters(), self.lr, maximize=True)
            self.take_up()
        with torch.enable_grad():
            self.phi.requires_grad_(True)
            for _ in range(self.ascent):
                self.climber.zero_grad()
                self.term(u, v, (y, y), self.phi).backward()
                self.climber.step()
        self.phi.requires_grad_(False)  # the weights' step is not to move it
