"""IWDD by its Algorithm 2: a generator of adversarial images, trained beside the classifier."""

from dataclasses import KW_ONLY, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam

from wotlab._base import checks, draws
from wotlab._base.modes import eval_mode
from wotlab.attacks import Objective
from wotlab.iwd import PatchCost, game
from wotlab.training._defenses import Grown, bare


class Walls(torch.autograd.Function):
    """Clamp to [0, 1]. Of the gradient beyond a wall what leads back is kept.

    `clamp` drops all of it: a generator that once made every image black would stay there.
    """

    @staticmethod
    def forward(context: Any, z: Tensor) -> Tensor:
        context.save_for_backward(z)
        return z.clamp(0, 1)

    @staticmethod
    def backward(context: Any, slope: Tensor) -> Tensor:
        (z,) = context.saved_tensors
        out = ((z < 0) & (slope > 0)) | ((z > 1) & (slope < 0))  # descent would go further out
        return slope.masked_fill(out, 0)


class Generator(nn.Module):
    """g(x, n): four convolutions from images and noise to changed images, one net for all.

    The last convolution is zero at first, so that g(x, n) = x.
    """

    def __init__(self, channels: int, *, like: Tensor):
        super().__init__()
        sizes = (2 * channels, game.WIDTH, game.WIDTH, game.WIDTH, channels)
        for k, (n, m) in enumerate(pairwise(sizes)):
            scale = 0 if k == len(sizes) - 2 else (2 / (n * game.KERNEL**2)) ** 0.5
            weight = scale * draws.normal(like.new_empty(m, n, game.KERNEL, game.KERNEL))
            setattr(self, f"weight{k}", nn.Parameter(weight))
            setattr(self, f"bias{k}", nn.Parameter(like.new_zeros(m)))
        self.layers = len(sizes) - 1

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] from images and noise of that shape."""
        z = torch.cat([x, noise], 1)
        for k in range(self.layers):
            z = F.leaky_relu(z, game.LEAK) if k else z
            z = F.pad(z, [game.KERNEL // 2] * 4, mode="replicate")
            z = F.conv2d(z, getattr(self, f"weight{k}"), getattr(self, f"bias{k}"))
        return Walls.apply(x + game.GAIN * z)


@dataclass(eq=False, repr=False)
class GenerativeIWDD(Grown):
    r"""Training on images of a generator that plays against a critic (Tan et al., Algorithm 2).

    .. math:: \mathbb{E}\, \bigl[\beta\, \mathrm{CE}(\mathrm{model}(x), y)
        + \mathrm{CE}(\mathrm{model}(g(x, n)), y)\bigr]

    The paper's defense with the paper's adversary. On each minibatch a critic f of patches takes
    `critic_steps` steps up and a generator g one step down on Algorithm 1's loss,

    .. math:: \mathbb{E} f(u) - \mathbb{E} f(v) - \mathtt{penalty}\, R(f)
        - \tau\, \mathbb{E} \log\frac{1 - p_y}{p_y},

    where u are the patches of x, v those of g(x, n), n is normal noise, p_y the classifier's
    probability of the label at g(x, n), and R the gradient penalty of `wotlab.iwd.critic`.
    Then the classifier takes its step. `IWDD` replaces the game by a direct attack on the ball.

    Parameters
    ----------
    cost : PatchCost, optional
        Cuts the patches: sliding 3x3 by default.
    beta : float > 0
        Weight of the clean images, 0.1 in the paper.
    tau : float > 0
        Weight of the classifier in the generator's loss, 0.1 in the paper.
    critic_steps : int >= 1
        n_critic in the paper, which prints no number; 5 as in Gulrajani et al. (2017).
    lr : float > 0
        Of Adam, for generator and critic: 5e-4, with betas (0.5, 0.999), in the paper.
    penalty : float > 0
        Of the critic's slope: 10 as in Gulrajani et al. (2017); the paper does not say.

    Raises
    ------
    ValueError
        For another cost, or numbers out of range; from `loss`, for images smaller than a patch.

    Notes
    -----
    There is no ball: the distance is penalised, and nothing bounds it. It is not quite the
    internal distance, either. One critic serves all images, so that its gap estimates the distance
    between the patches of the whole minibatch before and after, at most the mean of the images'
    own distances: patches may be exchanged between images at no cost.

    The generator works at the images' own size. `wotlab.attacks.iwda` trains a pyramid of them
    for each image, scale after scale, each to its end; a generator that follows a classifier has
    no such end.

    The paper trains the classifier with SGD from lr 0.1 for 200 epochs of minibatches of 128. In
    several processes each has a generator and a critic of its own.

    Examples
    --------
    >>> from wotlab import data, models, training
    >>> images = data.load("digits", "train").tensors(slice(16))
    >>> defense = training.GenerativeIWDD(critic_steps=1)
    >>> training.fit(models.build("digits-small", seed=0), images, defense, epochs=1).epochs
    1
    """

    grown = ("players", "down", "up")

    cost: PatchCost = PatchCost()  # noqa: RUF009, frozen
    _: KW_ONLY
    beta: float = 0.1
    tau: float = 0.1
    critic_steps: int = 5
    lr: float = game.RATE
    penalty: float = game.PENALTY

    def __post_init__(self) -> None:
        checks.instance("cost", self.cost, PatchCost)
        for name in ("beta", "tau", "lr", "penalty"):
            checks.positive(name, getattr(self, name))
        checks.count("critic_steps", self.critic_steps)

    def begin(self, x: Tensor) -> None:
        """Make generator and critic for such images, or take up the stored ones."""
        devices = [x.device] if x.device.type == "cuda" else []
        # stored weights must not take random numbers that the run before did not take
        with torch.random.fork_rng(devices, enabled=self._stored is not None):
            self.generator = Generator(x.shape[1], like=x)
            self.critic = game.PatchCritics(1, x.shape[1] * self.cost.size**2, like=x)
        self.down = Adam(self.generator.parameters(), self.lr, game.BETAS)
        self.up = Adam(self.critic.parameters(), self.lr, game.BETAS, maximize=True)
        self.players = nn.ModuleDict({"generator": self.generator, "critic": self.critic})
        self.take_up()

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """One round of the game; the classifier's mean loss on the minibatch."""
        z = self.play(bare(model), x, y)
        return self.beta * F.cross_entropy(model(x), y) + F.cross_entropy(model(z), y)

    def play(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Train critic and generator on this minibatch; what the generator then makes of it."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # the game is not rounded
        if not self._made:
            self.begin(wide)
        noise = draws.normal(wide)
        with eval_mode(model), torch.autocast(x.device.type, enabled=False):
            with torch.enable_grad():
                z = self.generator(wide, noise)
                u, v = self.patches(wide, z.detach())
                for _ in range(self.critic_steps):
                    game.critic_step(self.up, self.critic, u, v, self.cost, self.penalty, None)
                odds, _ = Objective(model, y, False, "ce").value(z.to(x.dtype))
                value = (
                    game.gap(self.critic, *self.patches(wide, z)).mean() - self.tau * odds.mean()
                )
                weights = list(self.generator.parameters())
                slopes = torch.autograd.grad(value, weights)  # none for the classifier's weights
            for weight, slope in zip(weights, slopes, strict=True):
                weight.grad = slope
            self.down.step()
            return self.generator(wide, noise).to(x.dtype)

    def patches(self, *images: Tensor) -> tuple[Tensor, ...]:
        """Patches of all images of a minibatch together, (1, B N, d)."""
        return tuple(self.cost.cut(each).flatten(0, 1)[None] for each in images)
