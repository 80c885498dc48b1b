"""The game of critic and generator: networks that tell patches apart, and the distance by them."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam
from tqdm.auto import tqdm

from wotlab._base import checks, draws
from wotlab._base.draws import Generator
from wotlab.iwd._patches import PatchCost

__all__ = [
    "BETAS",
    "GAIN",
    "KERNEL",
    "LEAK",
    "PENALTY",
    "RATE",
    "WIDTH",
    "PatchCritics",
    "critic",
    "critic_step",
    "gap",
    "slope_penalty",
]

RATE, BETAS = 5e-4, (0.5, 0.999)  #: Of Adam, for the critic and the generator (Tan et al.).
LEAK = 0.2  #: Slope of the rectifiers below zero.
HIDDEN = 64  # width of the critics' layers
WIDTH, KERNEL = 32, 3  #: Channels and side of the generator's convolutions.
GAIN = 0.05  #: Of the generator's output, so that the critics keep up.
PENALTY = 10.0  #: Of the critic's slope: Gulrajani et al. (2017); Tan et al. do not print theirs.

OnPatches = Callable[[Tensor], Tensor]  # a function of patches (B, N, d)


class PatchCritics(nn.Module):
    """B networks, one an image: each gives a number to each patch of d numbers.

    Three layers with two leaky rectifiers. Their parameters have the image as first dimension.

    Parameters
    ----------
    count, d : int
        Images, and numbers of a patch.
    hidden : int
        Width of both hidden layers.
    like : Tensor
        Gives device and dtype.
    generator : torch.Generator, optional
        Of the first weights.

    Examples
    --------
    >>> import torch
    >>> from wotlab.iwd import game
    >>> one, u = torch.Generator().manual_seed(0), torch.rand(2, 36, 9)
    >>> critics = game.PatchCritics(2, 9, like=u, generator=one)
    >>> critics(u).shape, critics.slope(u).shape
    (torch.Size([2, 36]), torch.Size([2, 36, 9]))
    """

    def __init__(self, count: int, d: int, *, like: Tensor, generator: Generator = None):
        super().__init__()
        sizes = (d, HIDDEN, HIDDEN, 1)
        for k, (n, m) in enumerate(pairwise(sizes)):
            weight = draws.normal(like.new_empty(count, n, m), generator) * (2 / n) ** 0.5
            setattr(self, f"weight{k}", nn.Parameter(weight))
            setattr(self, f"bias{k}", nn.Parameter(like.new_zeros(count, 1, m)))

    def forward(self, u: Tensor) -> Tensor:
        """Patches (B, N, d) to numbers (B, N)."""
        weight, bias = list(self.parameters())[4:]
        _, second = self.layers(u)
        return torch.baddbmm(bias, F.leaky_relu(second, LEAK), weight)[:, :, 0]

    def layers(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """What enters the rectifiers of the first and the second layer."""
        u = 2 * u - 1  # centred: patches lie in [0, 1]
        weight0, bias0, weight1, bias1, *_ = self.parameters()
        first = torch.baddbmm(bias0, u, weight0)
        return first, torch.baddbmm(bias1, F.leaky_relu(first, LEAK), weight1)

    def slope(self, u: Tensor) -> Tensor:
        """The gradient at each patch, (B, N, d).

        A product of matrices, whose derivative costs less than a second one of `forward`.
        """
        first, second = (torch.full_like(h, LEAK).masked_fill_(h > 0, 1) for h in self.layers(u))
        weight0, _, weight1, _, weight2, _ = self.parameters()
        back = first * ((second * weight2.mT) @ weight1.mT)
        return 2 * back @ weight0.mT


def slope_penalty(
    slope: OnPatches, u: Tensor, v: Tensor, cost: PatchCost, generator: Generator = None
) -> Tensor:
    r"""How far a critic's slope is from 1 between patches of u and of v: (B,).

    .. math:: R = \mathbb{E}\, \bigl(\lVert \nabla f(w)\rVert_* - 1\bigr)^2, \qquad
        w = \rho u + (1 - \rho) v, \quad \rho \text{ uniform on } [0, 1]

    The norm with a star is the dual of the ground cost's, the largest entry for l1: a function is
    1-Lipschitz for l1 where no partial derivative exceeds 1. The gradient is that of each
    patch, not of the image: `slope` takes patches (B, N, d) to as many gradients.

    Parameters
    ----------
    slope : function of patches (B, N, d)
        Gradients of f at them, (B, N, d).
    u, v : Tensor (B, N, d)
    cost : PatchCost
        Its norm is the one whose dual is taken.
    generator : torch.Generator, optional
        Of rho.

    Examples
    --------
    >>> import torch
    >>> from wotlab import PatchCost
    >>> from wotlab.iwd import game
    >>> u, v = torch.rand(1, 4, 9), torch.rand(1, 4, 9)
    >>> game.slope_penalty(lambda w: torch.full_like(w, 3.0), u, v, PatchCost())
    tensor([4.])
    """
    rho = draws.uniform(u[:, :, :1], generator)
    w = (rho * u + (1 - rho) * v).detach()
    dual = {1: torch.inf, 2: 2}[cost.norm]
    return (torch.linalg.vector_norm(slope(w), ord=dual, dim=2) - 1).square().mean(1)


def gap(critics: OnPatches, u: Tensor, v: Tensor) -> Tensor:
    r"""What a critic f proves of the distance, if it is 1-Lipschitz: (B,).

    .. math:: \mathbb{E} f(u) - \mathbb{E} f(v) \ \le\ \mathrm{IWD}(x, z)

    Parameters
    ----------
    critics : function of patches (B, N, d) that returns (B, N)
    u, v : Tensor (B, N, d), (B, M, d)

    Examples
    --------
    >>> import torch
    >>> from wotlab.iwd import game
    >>> u, v = torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[0.0], [0.5]]])
    >>> game.gap(lambda patches: patches.sum(2), u, v)  # f(u) = u is 1-Lipschitz
    tensor([1.2500])
    """
    of_u, of_v = critics(torch.cat([u, v], 1)).split([u.shape[1], v.shape[1]], 1)
    return of_u.mean(1) - of_v.mean(1)


def critic(
    x: Tensor,
    z: Tensor,
    cost: PatchCost | None = None,
    *,
    steps: int = 500,
    lr: float = RATE,
    penalty: float = PENALTY,
    generator: Generator = None,
    progress: bool = False,
) -> Tensor:
    r"""The internal distance as a critic learns it, one for each pair of images (Tan et al.).

    .. math:: \max_f\ \mathbb{E} f(u) - \mathbb{E} f(v) - \mathtt{penalty}\, R(f)

    over the patches u of x and v of z, as in their Algorithm 1.

    Parameters
    ----------
    x, z, cost
        As for `exact`.
    steps : int
        Of Adam on each critic, with betas (0.5, 0.999).
    lr : float
        5e-4 in the paper.
    penalty : float
        Weight of R, see `wotlab.iwd.game.slope_penalty`; subtracted: printed with the sign that
        rewards flat critics. 10 as in Gulrajani et al. (2017); the paper does not say.
    generator : torch.Generator, optional
        Of first weights and of rho.
    progress : bool

    Returns
    -------
    Tensor (B,), detached
        The last gap. An estimate: the penalty does not make f 1-Lipschitz, so that the gap may
        lie above the distance as well as below. Where a number must be right take `exact`.

    Raises
    ------
    ValueError
        For images or patches as `exact`; for steps, lr or penalty that are not positive.

    Examples
    --------
    >>> import torch
    >>> from wotlab import data, iwd
    >>> x, _ = data.load("digits").tensors(slice(2))
    >>> one = torch.Generator().manual_seed(0)
    >>> learned = iwd.critic(x.double(), x.double().flip(0), steps=50, generator=one)
    >>> learned.shape, bool((learned > 0).all())
    (torch.Size([2]), True)
    """
    cost = cost or PatchCost()
    checks.instance("cost", cost, PatchCost)
    checks.image_pair(black=True, x=x, z=z)
    checks.count("steps", steps)
    checks.positive("lr", lr)
    checks.positive("penalty", penalty)
    u, v = cost.cut(x.detach()), cost.cut(z.detach())
    critics = PatchCritics(len(x), u.shape[2], like=u, generator=generator)
    adam = Adam(critics.parameters(), lr, BETAS, maximize=True)
    with torch.enable_grad():
        for _ in tqdm(range(steps), disable=not progress, leave=False):
            critic_step(adam, critics, u, v, cost, penalty, generator)
    with torch.no_grad():
        return gap(critics, u, v)


def critic_step(
    adam: Adam,
    critics: PatchCritics,
    u: Tensor,
    v: Tensor,
    cost: PatchCost,
    penalty: float,
    generator: Generator,
) -> None:
    """One step of the critics, up.

    Parameters
    ----------
    adam : torch.optim.Adam
        Of the critics' weights, with `maximize=True`.
    critics : PatchCritics
    u, v : Tensor (B, N, d)
    cost, generator
        As for `slope_penalty`.
    penalty : float > 0
        Its weight.

    Examples
    --------
    >>> import torch
    >>> from wotlab import PatchCost
    >>> from wotlab.iwd import game
    >>> one = torch.Generator().manual_seed(0)
    >>> u, v = torch.zeros(1, 36, 9), torch.ones(1, 36, 9)
    >>> critics = game.PatchCritics(1, 9, like=u, generator=one)
    >>> adam = torch.optim.Adam(critics.parameters(), 5e-4, maximize=True)
    >>> before = game.gap(critics, u, v)
    >>> for _ in range(20):
    ...     game.critic_step(adam, critics, u, v, PatchCost(), 10.0, one)
    >>> bool(game.gap(critics, u, v) > before + 1)
    True
    """
    value = gap(critics, u, v) - penalty * slope_penalty(critics.slope, u, v, cost, generator)
    adam.zero_grad()
    value.sum().backward()
    adam.step()
