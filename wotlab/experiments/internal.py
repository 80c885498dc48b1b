"""Tan et al. on digits: how far each attack must go at each of its settings.

An attack is compared with others at its best: every setting of the sweep counts, and what broke an
image is walked back along the straight line to the image, as far as it goes on breaking it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from wotlab import attacks, evaluate, iwd, models
from wotlab.attacks import AttackResult
from wotlab.balls import InternalWassersteinBall, LinfBall, WassersteinBall
from wotlab.experiments.iwd import generator
from wotlab.experiments.iwd import right_ones as of_network
from wotlab.experiments.runner import Cell, Run

DIGITS, FEW = "mnist-5k", 50
NETWORKS = ("mnist-standard", "mnist-pgd-at", "mnist-iwdd")
ANY = InternalWassersteinBall(9.0)  # holds all grey images
HALVINGS = 12  # of the way back

PIXELS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6)  # budgets in l-infinity
MASS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)  # of moved mass, in pixels
FAR = (0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8, 1.2)  # in IWD
TAUS, STEPS = (0.01, 0.03, 0.1, 0.3, 1.0), (100, 400)  # of IWDA

Performed = Callable[[nn.Module, Tensor, Tensor], AttackResult]


def with_noise(attack: Callable, *args: Any, **options: Any) -> AttackResult:
    """An attack whose noise is the same at each call."""
    return attack(*args, generator=generator(), **options)


def budgets(
    attack: Callable, ball: Callable, sizes: tuple[float, ...], name: str = "eps"
) -> dict[str, Performed]:
    return {f"{name}-{size:g}": partial(attack, ball=ball(size)) for size in sizes}


IWDA = partial(with_noise, attacks.iwda, ball=ANY)
SETTINGS: Mapping[str, Mapping[str, Performed]] = {  # of each attack, by a name
    "fgsm": budgets(attacks.fgsm, LinfBall, PIXELS),
    "pgd": budgets(attacks.pgd, LinfBall, PIXELS),
    "eot": budgets(partial(with_noise, attacks.eot), LinfBall, PIXELS),
    "fwadv": budgets(partial(attacks.frank_wolfe, steps=100), WassersteinBall, MASS),
    "stadv": {
        f"tau-{tau:g}-{how}": partial(attacks.stadv, ball=ANY, tau=tau, optimizer=how)
        for tau, how in product((0.0, 0.005, 0.05, 0.5), ("lbfgs", "adam"))
    } | {"tau-0.05-lbfgs-smoothest": partial(attacks.stadv, ball=ANY, early_stop=False)},
    "adef": {
        f"sigma-{sigma:g}": partial(attacks.adef, ball=ANY, sigma=sigma)
        for sigma in (0.0, 0.5, 1.0, 2.0)
    } | {"sigma-0.5-short": partial(attacks.adef, ball=ANY, overshoot=1.0)},
    "iwda": {
        f"tau-{tau:g}-steps-{steps}": partial(IWDA, tau=tau, steps=steps)
        for tau, steps in product(TAUS, STEPS)
    } | {
        "tau-0.1-width-8": partial(IWDA, width=8),
        "tau-0.1-width-64": partial(IWDA, width=64),
        "tau-0.1-one-scale": partial(IWDA, most_scales=1),
        "tau-0.1-lr-0.002": partial(IWDA, lr=2e-3),
        "tau-0.1-lr-0.0001": partial(IWDA, lr=1e-4, steps=400),
        "tau-0.1-critic-1": partial(IWDA, critic_steps=1),
        "tau-0.1-critic-20": partial(IWDA, critic_steps=20),
    },
    "direct": budgets(attacks.pgd, InternalWassersteinBall, FAR)
    | budgets(attacks.pgd, partial(InternalWassersteinBall, tile=4), FAR[:6], "tile-4-eps"),
}  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """How large the changes are that broke an image; None where none did."""

    l2: list[float | None]
    linf: list[float | None]
    iwd: list[float | None]

    @classmethod
    def of(cls, x: Tensor, z: Tensor, broken: Tensor) -> "Sizes":
        change = z - x
        far = (
            change.flatten(1).norm(dim=1), change.abs().amax((1, 2, 3)),
            iwd.exact(x, z) if len(x) else x.new_zeros(0),
        )  # fmt: skip
        listed = (
            [round(v, 4) if hit else None for v, hit in zip(one.tolist(), broken, strict=True)]
            for one in far
        )
        return cls(*listed)


def walked_back(model: nn.Module, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """From an image that is misread towards x, as far as it stays misread."""
    low, high = torch.zeros(len(x)).to(x), torch.ones(len(x)).to(x)  # shares of the way from x
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        wrong = ~evaluate.are_right(model, x + middle[:, None, None, None] * (z - x), y)
        low, high = torch.where(wrong, low, middle), torch.where(wrong, middle, high)
    return x + high[:, None, None, None] * (z - x)


def far_at(
    attack: Performed, model: nn.Module, x: Tensor, y: Tensor, counted: dict
) -> tuple[evaluate.Share, dict]:
    """The share of images that a setting breaks at any distance, and how far each had to go."""
    done = attack(model, x, y)
    z = done.x_adv.clamp(0, 1)
    broken = ~evaluate.are_right(model, z, y)
    back = walked_back(model, x, y, z)
    found = Sizes.of(x, z, broken)
    nearer = Sizes.of(x, back, broken).iwd
    least = [
        None if a is None or b is None else min(a, b)
        for a, b in zip(found.iwd, nearer, strict=True)
    ]
    return evaluate.share(int(broken.sum()), len(x)), counted | vars(found) | {
        "walked_back": least, "seconds_an_image": round(done.seconds / len(x), 3),
    }  # fmt: skip


def right_ones(run: Run, name: str) -> tuple[nn.Module, Tensor, Tensor, dict]:
    """A network that ships, the digits that it reads rightly, and how many it does not."""
    return of_network(models.load(name).to(run.device), run)


def settings(run: Run) -> Iterator[Cell]:
    """Each setting of each attack on digits: what it breaks, and how far from the image."""
    run = replace(run.first(FEW), dataset=DIGITS)
    for name in (name for name in NETWORKS if name in models.shipped()):
        given = cache(partial(right_ones, run, name))
        for attack, several in SETTINGS.items():
            for setting, performed in several.items():
                yield Cell(
                    "iwd-settings", {"network": name, "attack": attack, "setting": setting}, run,
                    partial(far_at, performed), given, seed=0,
                )  # fmt: skip
