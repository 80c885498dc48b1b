"""One yardstick: each image's radius under every threat, for the networks of three data sets."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor, nn

from wotlab import attacks, evaluate, models, training
from wotlab.attacks import Attack, AttackResult
from wotlab.balls import Ball, InternalWassersteinBall, LinfBall
from wotlab.evaluate import Threat, usual_threats
from wotlab.experiments.internal import ANY, walked_back, with_noise
from wotlab.experiments.recipes import RECIPES, pgd_within
from wotlab.experiments.runner import Cell, Run
from wotlab.experiments.trials import fitted

IWD = (0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8)
LINF = (0.02, 0.04, 0.06, 0.1, 0.2, 0.3)  # where images are sought that fool when moved, too
FLOW = partial(attacks.stadv, early_stop=False, steps=60)  # on to the smoothest, as its authors do
EPS = {  # in l-infinity, where networks were trained: AutoAttack has the last word there
    "mnist": 0.3, "fashion-mnist": 0.1, "cifar10": 2 / 255,
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A threat, the largest radius that it looks for, and the images that it gets; None: all."""

    threat: Threat
    largest: float
    few: int | None = None


def searched(data: str) -> dict[str, Column]:
    """The usual threats for the images of a data set."""
    x = torch.zeros(1, 3, 32, 32) if data == "cifar10" else torch.zeros(1, 1, 28, 28)
    usual = usual_threats(x)
    usual["linf"] = usual["linf"].also_by(attacks.library, EPS[data])
    largest = {
        "linf": 1.0, "l2": x[0].numel() ** 0.5, "wasserstein": 4.0, "shift": 6.0,
        "rotation": 90.0, "blur": 3.0,
    }  # fmt: skip
    return {name: Column(threat, largest[name]) for name, threat in usual.items()}


def deformed() -> dict[str, Column]:
    """Threats that are slow, or know grey images alone; they get fewer images."""
    tiled = InternalWassersteinBall(0.0, tile=4)
    return {
        "iwd": Column(Threat.on_grid(attacks.pgd, tiled, IWD, "IWD"), max(IWD), 200),
        "flow": Column(Threat.once(partial(nearer, FLOW), ANY, "IWD"), ANY.eps, 200),
        "rough-flow": Column(
            Threat.once(partial(nearer, partial(FLOW, tau=0.005)), ANY, "IWD"), ANY.eps, 200
        ),
        "deformation": Column(Threat.once(partial(nearer, attacks.adef), ANY, "IWD"), ANY.eps, 200),
        "patches": Column(Threat.once(partial(with_noise, attacks.iwda), ANY, "IWD"), ANY.eps, 200),
        "moved": Column(
            Threat.on_grid(partial(with_noise, attacks.eot), LinfBall(0.0), LINF), 1.0, 200
        ),
    }


def nearer(attack: Attack, model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> AttackResult:
    """What an attack without a budget breaks, walked back towards the image if that is nearer."""
    done = attack(model, x, y, ball)
    far = done.x_adv.clamp(0, 1)
    back = walked_back(model, x, y, far)
    short = done.success & (ball.distance(x, back) < ball.distance(x, far))
    return replace(done, x_adv=torch.where(short[:, None, None, None], back, far))


def field_of(
    column: Column, name: str, model: nn.Module, x: Tensor, y: Tensor
) -> tuple[float, dict]:
    """The median radius, the largest counting where nothing was found, and what there is to it."""
    made = evaluate.matrix({name: model}, {"it": column.threat}, (x, y)).fields[name]["it"]
    listed = [float(f"{r:.5g}") if math.isfinite(r) else None for r in made.radii.tolist()]
    return min(made.half, column.largest), {
        "radii": listed, "forward": made.forward, "backward": made.backward,
        "attack_seconds": made.seconds, "doubts": [str(doubt) for doubt in made.doubts],
    }  # fmt: skip


def row(
    what: str, run: Run, network: str, given: Callable, threats: dict[str, Column]
) -> Iterator[Cell]:
    """One network under each threat; those on the same images share it."""
    runs = {column.few: run.first(column.few) for column in threats.values()}
    shared = {few: cache(partial(given, here)) for few, here in runs.items()}
    for which, column in threats.items():
        yield Cell(
            what, {"network": network, "threat": which}, runs[column.few],
            partial(field_of, column, network), shared[column.few],
            f"{column.threat.unit}, median", seed=0,
        )  # fmt: skip


def yardstick(run: Run) -> Iterator[Cell]:
    """Each image's radius under eleven threats: the networks that ship for MNIST."""
    for name in models.shipped():
        if name.startswith("mnist-"):
            threats = searched("mnist") | deformed()
            yield from row("yardstick", run, name, partial(Run.shipped, name=name), threats)


DEFENSES: dict[str, dict[str, Callable]] = {  # of the networks that are trained here
    "fashion-mnist": {
        "standard": training.Standard, "pgd-at": partial(pgd_within, EPS["fashion-mnist"]),
    },
    "cifar10": {"standard": training.Standard},
}  # fmt: skip
TRAINED = {  # eps, 0 without a defense, and seed; what is missing is in the other two
    "mnist": ((0.0, 1), (0.0, 2), (0.1, 0), (0.2, 0)), "fashion-mnist": ((0.2, 0), (0.3, 0)),
}  # fmt: skip


def elsewhere(data: str, run: Run) -> Iterator[Cell]:
    """Each image's radius under six threats: networks trained as on MNIST, and released ones."""
    run = replace(run, dataset=data).first(200)

    def given(name: str, here: Run) -> tuple[nn.Module, Tensor, Tensor]:
        if name not in DEFENSES[data]:
            return here.network(name), *here.test_images()
        return trained(here, DEFENSES[data][name](), name), *here.test_images()

    for name in (*DEFENSES[data], *run.networks()):
        yield from row(f"yardstick-{data}", run, name, partial(given, name), searched(data))


def over_eps(run: Run) -> Iterator[Cell]:
    """Transport after PGD-AT at several eps: is it the images that decide, or the eps?"""
    column = {"wasserstein": searched("mnist")["wasserstein"]}

    def given(eps: float, seed: int, which: str, here: Run) -> tuple[nn.Module, Tensor, Tensor]:
        kind, defense = ("pgd-at", pgd_within(eps)) if eps else ("standard", training.Standard())
        return trained(here, defense, kind, which, seed), *here.test_images()

    for data, networks in TRAINED.items():
        here = replace(run, dataset=data).first(200)
        for eps, seed in networks:
            which = f"-{eps:g}" + (f"-seed-{seed}" if seed else "")
            known = partial(given, eps, seed, which)
            yield from row("yardstick-eps", here, f"{data}{which}", known, column)


def trained(
    run: Run, defense: training.Defense, kind: str, which: str = "", seed: int = 0
) -> nn.Module:
    """By the recipe of the network for MNIST of that kind, on all training images."""
    model = run.untrained(seed=seed).to(run.device)
    path = run.checkpoints / f"yardstick-{run.dataset}-{kind}{which}.safetensors"
    images = run.load("train").tensors()
    return fitted(model, images, defense, path, seed=seed, **RECIPES[f"mnist-{kind}"].fit)[0]
