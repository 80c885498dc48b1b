"""Langevin sampling of adversarial examples on the l-infinity ball."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wotlab._base import checks, draws
from wotlab.attacks._loop import Moved, Stepper, attack, climbing
from wotlab.attacks._result import AttackResult
from wotlab.balls import LinfBall
from wotlab.gibbs import Chain, like


@dataclass(eq=False)
class Langevin(Stepper):
    """One step of a chain for the Gibbs law of the cross-entropy on each image's box."""

    ball: LinfBall
    chain: Chain
    targeted: bool
    random_start: bool
    generator: torch.Generator | None

    def start(self, x: Tensor) -> Moved:
        self.x = x
        # image, gradient and loss where each chain is
        self.now: tuple[Tensor, Tensor, Tensor] | None = None
        self.lo, self.hi = self.ball.walls(x)
        z = x
        if self.random_start:
            z = self.lo + (self.hi - self.lo) * draws.uniform(x, self.generator)
        return z, self.ball.distance(x, z)

    def step(self, z: Tensor, gradient: Tensor, loss: Tensor, broken: Tensor, t: int) -> Moved:
        # attacks climb u = log((1 - p) / p); the law is that of CE = log(1 + e^u)
        sign = -1 if self.targeted else 1
        slope = torch.sigmoid(sign * loss)[:, None, None, None]
        then = (z, slope * gradient, sign * nn.functional.softplus(sign * loss))
        if self.now is None:
            self.now = then
        else:
            go = self.chain.accept(self.now, then, self.lo, self.hi, self.generator)
            pairs = zip(self.now, then, strict=True)
            at, along, value = (torch.where(like(go, b), b, a) for a, b in pairs)
            self.now = at, along, value
        z = self.chain.move(self.now[0], self.now[1], self.lo, self.hi, self.generator)
        return z, self.ball.distance(self.x, z)


def langevin(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball: LinfBall,
    *,
    targeted: bool = False,
    steps: int = 40,
    chain: Chain | None = None,
    random_start: bool = True,
    early_stop: bool = True,
    batch_size: int = 1000,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> AttackResult:
    r"""Sample the Gibbs law of the loss on the ball; keep the worst image.

    .. math:: p(z) \propto e^{\lambda\, \mathrm{CE}(\mathrm{model}(z),\, y)}
        \quad\text{on}\quad B_\varepsilon(x)

    Parameters
    ----------
    model, x, y, targeted, early_stop, batch_size, progress
        As for `mirror_ascent`.
    ball : LinfBall
    steps : int
        Of the chain.
    chain : wotlab.gibbs.Chain, optional
        Its rule and its numbers, in units of brightness. By default the printed sign step with
        noise, `Chain("sign", sigma=eps / 2, eta=eps / 2)`.
    random_start : bool
        Begin at a uniform image of the ball.
    generator : torch.Generator, optional
        Of all noise.

    Returns
    -------
    AttackResult
        A sampler finds the region of large loss, not its top: `pgd` breaks more images.

    Raises
    ------
    ValueError
        As for `mirror_ascent`; for a ball of another kind.

    Examples
    --------
    >>> import torch
    >>> from wotlab import LinfBall, attacks, data, models
    >>> model = models.load("digits-standard").double()
    >>> x, y = data.load("digits").tensors(slice(20))
    >>> noise = torch.Generator().manual_seed(0)
    >>> done = attacks.langevin(model, x.double(), y, LinfBall(0.3), generator=noise)
    >>> int(done.success.sum()), bool(((done.x_adv - x).abs() <= 0.3 + 1e-6).all())
    (20, True)
    """
    LinfBall.require(ball)
    half = max(ball.eps / 2, 1e-30)
    chain = chain or Chain("sign", sigma=half, eta=half)
    checks.instance("chain", chain, Chain)
    checks.flags(random_start=random_start)
    run = climbing(Langevin(ball, chain, targeted, random_start, generator), steps)
    return attack(
        [run], model, x, y, ball, targeted=targeted, loss="ce",
        batch_size=batch_size, early_stop=early_stop, progress=progress,
    )  # fmt: skip
