"""The internal Wasserstein attack of Tan et al.: a generator against a critic of patches."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Adam
from tqdm.auto import tqdm

from wotlab._base import checks
from wotlab.attacks._adam_rows import keep_rows
from wotlab.attacks._loop import attack
from wotlab.attacks._objective import Objective
from wotlab.attacks._pyramid import SMALLEST, Generators, changed, resize, scales
from wotlab.attacks._result import AttackResult, Best
from wotlab.balls import InternalWassersteinBall
from wotlab.iwd import PatchCost
from wotlab.iwd.game import BETAS, PENALTY, RATE, WIDTH, PatchCritics, critic_step, gap


def iwda(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball: InternalWassersteinBall,
    *,
    targeted: bool = False,
    tau: float = 0.1,
    steps: int = 100,
    critic_steps: int = 5,
    most_scales: int = 3,
    samples: int = 1,
    width: int = WIDTH,
    lr: float = RATE,
    penalty: float = PENALTY,
    early_stop: bool = True,
    batch_size: int = 100,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> AttackResult:
    r"""A generator against a critic of patches: IWDA (Tan et al., Algorithm 1).

    .. math:: \min_g \max_f\ \mathbb{E} f(u) - \mathbb{E} f(v) - \mathtt{penalty}\, R(f)
        - \tau\, L(\mathrm{model}(g(x, n)), y)

    u are the patches of x, v those of the generated image g(x, n), n normal noise, f a critic of
    patches whose gap estimates IWD(x, g(x, n)) (see `wotlab.iwd.critic`). Each image has a
    generator and a critic of its own at each scale of a pyramid, trained coarse to fine; the
    change found at one scale is where the next one begins. L is the loss that all attacks here
    climb, log((1 - p_y) / p_y), or targeted log(p_y / (1 - p_y)): the paper's cross-entropy has
    1 - p_y times its gradient, next to nothing where the network is sure, against a critic of
    slope 1.

    Parameters
    ----------
    model, x, y, targeted, early_stop, progress
        As for `mirror_ascent`; with `early_stop` an image is done when all its samples break.
    ball : InternalWassersteinBall
        Its cost cuts the patches. The method bounds no distance: eps only says which of its
        images count. Take a large one for the method as published, and `pgd` on the same ball
        for an attack that uses the budget.
    tau : float > 0
        Weight of the classifier's loss, 0.1 in the paper (the best of its ablation).
    steps : int
        Steps of the generators at each scale; each looks at fresh noise.
    critic_steps : int
        Steps of the critics before each of them, n_critic in the paper, which prints no number; 5
        as in Gulrajani et al. (2017).
    most_scales : int
        Scales of the pyramid, a factor of 2 apart; fewer where the coarsest would have a side
        below 8 pixels or that of a patch.
    samples : int
        Examples of each image, one a draw of the noise.
    width : int
        Channels of the generators' layers; 32 as in SinGAN, as the paper does not say.
    lr : float
        Of Adam: 5e-4, betas (0.5, 0.999), in the paper.
    penalty : float
        Weight of the gradient penalty, as for `wotlab.iwd.critic`.
    batch_size : int
        Images that are attacked at a time.
    generator : torch.Generator, optional
        Of first weights and of all noise.

    Returns
    -------
    AttackResult
        With samples * B entries: those of the first image, then those of the second, and so on.
        `cost` is the ball's distance. An image that the model misreads from the start counts as
        broken, with 0 steps (and with `early_stop` is returned as it is): leave those out, or count
        them apart with `wotlab.evaluate.success_rate`, which wants x and y repeated as often.

    Raises
    ------
    ValueError
        As for `mirror_ascent`; for a ball of another kind, patches that do not fit into the
        image, or a number out of range.

    Examples
    --------
    >>> import torch
    >>> from wotlab import InternalWassersteinBall, attacks, data, models
    >>> model = models.load("digits-standard").double()
    >>> x, y = data.load("digits").tensors(slice(2))
    >>> noise, ball = torch.Generator().manual_seed(0), InternalWassersteinBall(9.0)
    >>> options = dict(samples=2, steps=10, generator=noise)
    >>> done = attacks.iwda(model, x.double(), y, ball, **options)
    >>> done.x_adv.shape  # two of each image
    torch.Size([4, 1, 8, 8])
    """
    InternalWassersteinBall.require(ball)
    counts = {"steps": steps, "critic_steps": critic_steps, "most_scales": most_scales,
              "samples": samples, "width": width, "batch_size": batch_size}  # fmt: skip
    for name, count in counts.items():
        checks.count(name, count)
    for name, value in (("tau", tau), ("lr", lr), ("penalty", penalty)):
        checks.positive(name, value)

    def play(objective: Objective, many: Tensor, early_stop: bool, progress: bool) -> Best:
        x = many[::samples]
        game = _Game(x, samples, objective, ball.patch_cost, tau, penalty, width, generator)
        smallest = max(SMALLEST, ball.patch_cost.size)
        sizes = scales(x.shape[-2], x.shape[-1], most_scales, smallest)
        plan = [size for size in sizes for _ in range(steps)]
        with torch.enable_grad():
            for t, size in enumerate(tqdm(plan, disable=not progress, leave=False)):
                if t % steps == 0:
                    game.begin(size, lr)
                game.step(critic_steps, t)
                if early_stop and not game.drop():
                    break
            else:  # what the last step has made
                game.look(game.draw(), len(plan))
        return game.best

    return attack(
        [play], model, x, y, ball, targeted=targeted, loss="ce", batch_size=batch_size,
        early_stop=early_stop, progress=progress, exact=True, samples=samples,
    )  # fmt: skip


@dataclass(eq=False)
class _Game:
    """Generators against critics, one of each for every image that is not done."""

    x: Tensor
    samples: int
    objective: Objective
    cost: PatchCost
    tau: float
    penalty: float
    width: int
    generator: torch.Generator | None

    def __post_init__(self) -> None:
        self.best = Best(self.x.repeat_interleave(self.samples, 0))
        _, self.best.misread = self.objective.value(self.best.x_adv)
        self.rows = torch.arange(len(self.best.x_adv), device=self.x.device)
        self.change = self.x.new_zeros(self.samples, *self.x.shape)

    def begin(self, size: tuple[int, int], lr: float) -> None:
        """New networks for the next scale, which goes on from the change that was drawn last."""
        self.small, self.coarse = resize(self.x, size), resize(self.change, size)
        self.u = self.cost.cut(self.small).repeat(1, self.samples, 1)
        x, generator = self.x, self.generator
        self.net = Generators(len(x), x.shape[1], self.width, like=x, generator=generator)
        self.critics = PatchCritics(len(x), self.u.shape[2], like=x, generator=generator)
        self.down = Adam(self.net.parameters(), lr, BETAS)
        self.up = Adam(self.critics.parameters(), lr, BETAS, maximize=True)

    def step(self, critic_steps: int, t: int) -> None:
        """Draw, let the critics learn, and move the generators down."""
        change = self.draw()
        z = (self.small + change).clamp(0, 1)
        v = self.cost.cut(z.flatten(0, 1)).unflatten(0, z.shape[:2]).movedim(0, 1).flatten(1, 2)
        for _ in range(critic_steps):
            critic_step(
                self.up, self.critics, self.u, v.detach(), self.cost, self.penalty, self.generator
            )
        value = gap(self.critics, self.u, v) - self.tau * self.look(change, t)
        weights = list(self.net.parameters())
        for weight, slope in zip(weights, torch.autograd.grad(value.sum(), weights), strict=True):
            weight.grad = slope
        self.down.step()

    def draw(self) -> Tensor:
        """Changes at this scale, with fresh noise."""
        return changed(self.net, self.small, self.coarse, self.generator)

    def look(self, change: Tensor, t: int) -> Tensor:
        """Note what breaks at the image's own size; mean loss of each image's samples, (B,)."""
        change = resize(change, self.x.shape[-2:])
        z = (self.x + change).clamp(0, 1).movedim(0, 1).flatten(0, 1)
        loss, broken = self.objective.value(z)
        self.change = change.detach()
        free = torch.zeros_like(loss)
        self.best.offer(self.rows, z.detach(), broken, free, loss.detach(), t)
        return loss.unflatten(0, (-1, self.samples)).mean(1)

    def drop(self) -> bool:
        """Forget the images whose samples are all broken; says whether any is left."""
        rows = self.rows.unflatten(0, (-1, self.samples))
        keep = ~self.best.broken[rows].all(1)
        if not bool(keep.any()):
            return False
        if not bool(keep.all()):
            self.rows = rows[keep].flatten()
            self.objective = self.objective.select(keep.repeat_interleave(self.samples))
            self.x, self.small, self.u = self.x[keep], self.small[keep], self.u[keep]
            self.change, self.coarse = self.change[:, keep], self.coarse[:, keep]
            keep_rows(self.down, keep)
            keep_rows(self.up, keep)
        return True
