"""Adversarial training on balls that bound transport: of pixels (Wasserstein) and of patches."""

from dataclasses import KW_ONLY, dataclass, field
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from wotlab._base import checks, draws
from wotlab._base.networks import divergence
from wotlab.attacks import Attack, mirror_ascent, pgd
from wotlab.balls import InternalWassersteinBall, WassersteinBall
from wotlab.training._defenses import PGDAT, watched


@dataclass(eq=False, repr=False)
class WassersteinAT(PGDAT):
    r"""Adversarial training on a Wasserstein ball: the loss of images whose mass was moved.

    .. math:: \mathbb{E} \max_{z \in B_\varepsilon(x)} \mathrm{CE}(\mathrm{model}(z), y)

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

    Examples
    --------
    >>> from wotlab import WassersteinBall, data, models, training
    >>> images = data.load("digits", "train").tensors(slice(64))
    >>> defense = training.WassersteinAT(WassersteinBall(0.1))
    >>> fit = training.fit(models.build("digits-small", seed=0), images, defense, epochs=1)
    >>> fit.history[0]["gradients"]  # of 64 images: six for the attack, one for the weights
    448
    """

    ball: WassersteinBall
    attack: Attack = field(default=partial(mirror_ascent, steps=6, step_size=4.0, early_stop=False))
    _: KW_ONLY
    noise: float = 0.0
    features: nn.Module | None = None

    def __post_init__(self) -> None:
        checks.positive("noise", self.noise, zero=True)
        if self.features is not None:
            checks.instance("features", self.features, nn.Module)
        super().__post_init__()

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


@dataclass(eq=False, repr=False)
class IWDD(PGDAT):
    r"""Adversarial training on an internal ball, the aim of Tan et al. (IWDD).

    .. math:: \mathbb{E}\, \Bigl[\beta\, \mathrm{CE}(\mathrm{model}(x), y)
        + \max_{z \in B_\varepsilon(x)} \mathrm{CE}(\mathrm{model}(z), y)\Bigr]

    The inner maximum is sought by an attack that keeps to the ball. The paper's Algorithm 2 seeks
    it by a generator against a critic, which keep to no ball: that is `GenerativeIWDD`.

    Parameters
    ----------
    ball : InternalWassersteinBall
        Its eps is the budget where `eps` is not given.
    eps : function of the epoch, optional
        As for `PGDAT`.
    attack : attack, optional
        As for `PGDAT`. By default ten steps of `pgd` on the ball, which never leave it.
    beta : float > 0
        Weight of the clean images, 0.1 in the paper.

    Raises
    ------
    ValueError
        For a ball of another kind, or beta <= 0.

    Notes
    -----
    The paper trains with SGD from lr 0.1 for 200 epochs of minibatches of 128.

    Examples
    --------
    >>> from wotlab import InternalWassersteinBall, data, models, training
    >>> images = data.load("digits", "train").tensors(slice(16))
    >>> defense = training.IWDD(InternalWassersteinBall(0.5))
    >>> training.fit(models.build("digits-small", seed=0), images, defense, epochs=1).epochs
    1
    """

    sees_clean = True
    kind = InternalWassersteinBall
    positive = ("beta",)

    ball: InternalWassersteinBall
    attack: Attack = field(default=partial(pgd, steps=10, early_stop=False))
    beta: float = field(default=0.1, kw_only=True)

    def mix(self, clean: Tensor, moved: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy of the attacked images, and beta times that of the clean ones."""
        return self.beta * F.cross_entropy(clean, y) + F.cross_entropy(moved, y)
