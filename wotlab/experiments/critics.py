"""The critic of Tan et al. beside the exact distance: four penalties, four pairs, 3,000 steps."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor
from torch.optim import Adam

from wotlab import attacks, iwd, models
from wotlab.balls import InternalWassersteinBall
from wotlab.experiments.iwd import generator
from wotlab.experiments.runner import Cell, Run, loaded
from wotlab.iwd import PatchCost, game

RATE, SEEN = 2e-3, (25, 50, 100, 200, 400, 600, 1000, 1500, 2000, 3000)  # steps


@dataclass(frozen=True)
class Penalty:
    """Its sign, the norm of the slope, whether that is the whole image's; of the first weights."""

    sign: int = -1
    norm: float = torch.inf
    whole: bool = False
    start: float = 1.0


PENALTIES = {
    "per-patch": Penalty(),
    "added": Penalty(sign=1),
    "added-flat-start": Penalty(sign=1, start=0.5),
    "l2": Penalty(norm=2),
    "whole-image": Penalty(norm=2, whole=True),
}


def digit(which: int = 0) -> Tensor:
    return loaded("mnist-5k").tensors(slice(which, which + 1))[0].double()


def roof(right: int = 0) -> Tensor:
    """A corner of a photograph; a digit's shift would cost nothing."""
    photograph = loaded("photographs").tensors(slice(0, 1))[0].double()
    return photograph[..., 96:124, 300 + right : 328 + right]


def attacked() -> Tensor:
    ball, y = InternalWassersteinBall(0.2), loaded("mnist-5k").tensors(slice(0, 1))[1]
    model = models.load("mnist-standard").double()
    return attacks.pgd(model, digit(), y, ball, early_stop=False).x_adv


def noisy() -> Tensor:
    x = digit()
    return (x + 0.1 * torch.randn(x.shape, generator=generator(), dtype=x.dtype)).clamp(0, 1)


PAIRS: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "two-digits": lambda: (digit(), digit(1)),
    "roof-shifted": lambda: (roof(), roof(1)),
    "noise-0.1": lambda: (digit(), noisy()),
    "attacked": lambda: (digit(), attacked()),
}


def learn(how: Penalty, x: Tensor, z: Tensor) -> tuple[float, dict]:
    """A critic's gap over the exact distance with the l1 cost, at its last step and before."""
    cost = PatchCost()
    u, v = cost.cut(x), cost.cut(z)
    one = generator()
    critics = game.PatchCritics(1, u.shape[2], like=u, generator=one)
    with torch.no_grad():
        for weight in critics.parameters():
            weight.mul_(how.start)
    adam = Adam(critics.parameters(), RATE, game.BETAS, maximize=True)
    exact, gaps, slope = iwd.exact(x, z, cost).item(), [], u
    for step in range(1, max(SEEN) + 1):
        rho = torch.rand(u.shape[:2], generator=one, dtype=u.dtype)[:, :, None]
        slope = critics.slope(rho * u + (1 - rho) * v)
        each = torch.linalg.vector_norm(slope, how.norm, 2)
        size = slope.norm() / u.shape[1] if how.whole else each
        gap = game.gap(critics, u, v).mean()
        adam.zero_grad()
        (gap + how.sign * game.PENALTY * (size - 1).square().mean()).backward()
        adam.step()
        if step in SEEN:
            gaps.append(round(gap.item(), 4))
    far = {f"exact_l{p}": iwd.exact(x, z, PatchCost(norm=p)).item() for p in (1, 2)}
    return gaps[-1] / exact, {
        "steps": list(SEEN), "gaps": gaps, "slope_l2": slope.norm(dim=2).mean().item(),
        "slope_linf": slope.abs().amax(2).mean().item(), **far,
    }  # fmt: skip


def critics(run: Run) -> Iterator[Cell]:
    """What a critic says of a distance, as a share of it, as the critic learns."""
    run = replace(run.first(1), dataset="mnist-5k")
    for pair, images in PAIRS.items():
        given = cache(images)
        for penalty, how in PENALTIES.items():
            yield Cell(
                "iwd-critic", {"pair": pair, "penalty": penalty}, run, partial(learn, how), given,
                "of the exact distance", seed=0,
            )  # fmt: skip
