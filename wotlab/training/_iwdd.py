"""IWDD with a direct attack: adversarial training on the internal Wasserstein ball."""

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.nn import functional as F

from wotlab._base import checks
from wotlab.attacks import pgd
from wotlab.balls import InternalWassersteinBall
from wotlab.training._defenses import PGDAT, Attack


class IWDD(PGDAT):
    r"""E[beta CE(model(x), y) + max_{z in ball(x)} CE(model(z), y)], the aim of Tan et al. (IWDD).

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
    """

    sees_clean = True

    def __init__(
        self,
        ball: InternalWassersteinBall,
        eps: Callable[[float], float] | None = None,
        attack: Attack | None = None,
        *,
        beta: float = 0.1,
    ):
        InternalWassersteinBall.require(ball)
        checks.positive("beta", beta)
        super().__init__(ball, eps, attack)
        self.beta = beta

    def default_attack(self) -> Attack:
        return partial(pgd, steps=10, early_stop=False)

    def mix(self, clean: Tensor, moved: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy of the attacked images, and beta times that of the clean ones."""
        return self.beta * F.cross_entropy(clean, y) + F.cross_entropy(moved, y)
